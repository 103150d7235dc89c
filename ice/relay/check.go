package relay

import "github.com/sluice-vpn/sluice/pipeline/frame"

// maxMessage is the longest STUN message in bytes, either way: what a client sends through a relay has to fit an internet path.
const maxMessage = 2048

// transportUDP is UDP's number in REQUESTED-TRANSPORT (RFC 8656 section 18.8).
const transportUDP = 17

// isChannelData reports whether a datagram is to be read as ChannelData. RFC 8656 section 12 has channel numbers 0x4000 to
// 0x4FFF; clients of RFC 5766, coturn's among them, are served too.
func isChannelData(b []byte) bool { return frame.IsChannelData(b, frame.LastOldChannel) }

// parseChannelData splits a ChannelData message. data is a view into b.
func parseChannelData(b []byte) (number uint16, data []byte, ok bool) {
	return frame.ParseChannelData(b, frame.LastOldChannel)
}

// channelRun is the data of ChannelData messages of one channel, one behind the other.
type channelRun struct {
	number uint16
	data   []byte // nil: the first message was malformed
	size   int    // of each but the last, which may be shorter; at least 1
}

// closeUp takes the messages at the head of d that make a run, and the datagrams they came in, of step bytes each but the
// last. The data are moved together in place, so that they can leave at once. The run and the rest are views into d.
func closeUp(d []byte, step int) (r channelRun, rest []byte) {
	read := min(step, len(d))
	number, data, ok := parseChannelData(d[:read])
	if !ok {
		return channelRun{}, d[read:]
	}
	size, end := len(data), frame.ChannelHeaderSize+len(data)
	for last := size == 0; !last && read < len(d); {
		next := min(read+step, len(d))
		n, more, ok := parseChannelData(d[read:next])
		if !ok || n != number || len(more) == 0 || len(more) > size {
			break
		}
		end += copy(d[end:], more)
		read, last = next, len(more) < size
	}
	return channelRun{number, d[frame.ChannelHeaderSize:end], max(size, 1)}, d[read:]
}
