package speedtest

import (
	"strconv"
	"strings"
)

// iperfLine is what one line of iperf3's report says of one flow in one interval.
type iperfLine struct {
	bytes           uint64 // rounded by iperf3 to three digits
	retransmits     uint64 // of a sender of TCP
	datagrams, lost uint64 // UDP; a sender knows of no losses
	backward        bool   // the flow goes from the server to the client
}

// iperfUnits are the multiples that iperf3 uses for amounts.
var iperfUnits = map[string]float64{"Bytes": 1, "KBytes": 1 << 10, "MBytes": 1 << 20, "GBytes": 1 << 30}

// parseIperf reads a line such as
//
//	[  5][TX-C]   0.00-0.10   sec  28.8 MBytes  2.41 Gbits/sec    0   1023 KBytes
//	[  5]   0.00-0.10   sec  2.90 MBytes   244 Mbits/sec  0.002 ms  962/31405 (3.1%)
//	[  5]   0.00-0.10   sec  3.00 MBytes   251 Mbits/sec  31410
//
// and reports whether it is one: headings, sums of flows and the summary at the end are none.
func parseIperf(text string) (line iperfLine, ok bool) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "[") || strings.HasPrefix(text, "[SUM]") ||
		strings.HasSuffix(text, "sender") || strings.HasSuffix(text, "receiver") {
		return iperfLine{}, false
	}
	head, rest := text[:strings.LastIndexByte(text, ']')+1], text[strings.LastIndexByte(text, ']')+1:]
	// The server receives what goes forward, so its senders go backward, as do the client's receivers.
	line.backward = strings.HasSuffix(head, "[TX-S]") || strings.HasSuffix(head, "[RX-C]")
	fields := strings.Fields(rest)
	if len(fields) < 6 || fields[1] != "sec" || !strings.HasSuffix(fields[5], "bits/sec") {
		return iperfLine{}, false
	}
	amount, err := strconv.ParseFloat(fields[2], 64)
	unit, known := iperfUnits[fields[3]]
	if err != nil || !known || amount < 0 {
		return iperfLine{}, false
	}
	line.bytes = uint64(amount * unit)
	switch tail := fields[6:]; {
	case len(tail) >= 3 && tail[1] == "ms": // jitter, then lost/total
		lost, total, _ := strings.Cut(tail[2], "/")
		line.lost, _ = strconv.ParseUint(lost, 10, 64)
		if line.datagrams, err = strconv.ParseUint(total, 10, 64); err != nil || line.lost > line.datagrams {
			return iperfLine{}, false
		}
	case len(tail) == 1:
		line.datagrams, _ = strconv.ParseUint(tail[0], 10, 64)
	case len(tail) > 1:
		line.retransmits, _ = strconv.ParseUint(tail[0], 10, 64)
	}
	return line, true
}
