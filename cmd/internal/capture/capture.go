// Package capture makes files for Wireshark of what a pipeline lets somebody see: a small language of filters (filter.go), the
// pcapng stream (pcapng.go, blocks.go), and its copy to a file, which stays readable whatever happens (copy.go).
package capture

import (
	"context"
	"errors"
	"io"

	"github.com/sluice-vpn/sluice/pipeline"
)

// Options are what a capture is asked for. The zero value: all packets of the tunnel, whole, until somebody ends it.
type Options struct {
	Peer       string `json:"peer,omitempty"`
	Filter     string `json:"filter,omitempty"` // see ParseFilter
	Outer      bool   `json:"outer,omitempty"`
	Count      uint64 `json:"count,omitempty"`       // packets, then it ends; 0: no end
	SnapLength int    `json:"snap_length,omitempty"` // bytes; 0: all
}

// Result is what a capture has come to.
type Result struct {
	Packets uint64 // written
	Dropped uint64 // not written since the reader was too slow
}

// Begin begins a capture of p. Errors: those of ParseFilter and Pipeline.Capture.
func (o Options) Begin(p *pipeline.Pipeline) (*pipeline.Capture, error) {
	filter, err := ParseFilter(o.Filter)
	if err != nil {
		return nil, err
	}
	cfg := pipeline.CaptureConfig{Peer: o.Peer, Outer: o.Outer, SnapLength: o.SnapLength}
	if filter != nil {
		cfg.Match = filter.Match
	}
	return p.Capture(cfg)
}

// Write writes what c has to w, as pcapng, until ctx or the pipeline ends, or there is enough of it; flush is called whenever there is
// nothing to write for a while. It closes c. name is the interface's.
func (o Options) Write(ctx context.Context, c *pipeline.Capture, name string, w io.Writer, flush func() error) (r Result, err error) {
	defer func() { c.Close(); r.Dropped = c.Dropped() }()
	pcap, err := NewWriter(w, name, o)
	if err != nil {
		return r, err
	}
copying:
	for {
		if !c.Waiting() {
			if err := errors.Join(pcap.Flush(), flush()); err != nil {
				return r, err
			}
		}
		list, err := c.Next(ctx)
		if err != nil { // the end
			break
		}
		for i := range list {
			if err := pcap.Write(&list[i]); err != nil {
				return r, err
			}
			if r.Packets++; r.Packets == o.Count {
				break copying
			}
		}
	}
	return r, errors.Join(pcap.End(c.Dropped()), pcap.Flush(), flush())
}
