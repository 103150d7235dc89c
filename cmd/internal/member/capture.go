package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/capture"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/pipeline"
)

// What a capture has come to is told in trailers of these names.
const (
	CapturedTrailer = "Sluice-Captured"
	DroppedTrailer  = "Sluice-Dropped"
)

// capture streams packets to whoever may open the socket, root and the user that the node runs as, until they have enough or close
// their side; the log says who it is. It is a goroutine of the server's own, and nothing waits for it.
func (n *node) capture(w http.ResponseWriter, r *http.Request) {
	var o capture.Options
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<14)) // to its end: then the server sees when the other side closes
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err == nil {
		err = n.knowsPeer(r, o.Peer)
	}
	var taken *pipeline.Capture
	if err == nil {
		taken, err = o.Begin(n.pipeline)
	}
	if errors.Is(err, pipeline.ErrCapturing) {
		err = errors.New("packets are being captured already; the node's log says by whom")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	by := []any{"uid", "unknown", "pid", "unknown"}
	if c, ok := status.CallerOf(r); ok {
		by = []any{"uid", c.UID, "pid", c.PID}
	}
	n.logger.Warn("packets are being captured", append(by, "peer", o.Peer, "filter", o.Filter, "outer", o.Outer)...)
	control := http.NewResponseController(w)
	_ = errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{})) // it may last
	w.Header().Set("Content-Type", "application/x-pcapng")
	w.WriteHeader(http.StatusOK)
	begun := time.Now()
	result, err := o.Write(r.Context(), taken, n.options.Interface, w, control.Flush)
	end := append(by, "packets", result.Packets, "dropped", result.Dropped, "lasted", time.Since(begun).Round(time.Millisecond))
	if err != nil {
		end = append(end, "error", "who captures has gone: "+err.Error())
	}
	n.logger.Warn("the capture has ended", end...)
	w.Header().Set(http.TrailerPrefix+CapturedTrailer, strconv.FormatUint(result.Packets, 10))
	w.Header().Set(http.TrailerPrefix+DroppedTrailer, strconv.FormatUint(result.Dropped, 10))
}

// knowsPeer is an error if there is no peer of that name, unless it is "".
func (n *node) knowsPeer(r *http.Request, name string) error {
	if name == "" {
		return nil
	}
	s, err := n.edge.Status(r.Context())
	if err != nil {
		return err
	}
	var names []string
	for _, c := range s.Connections {
		if names = append(names, c.Peer); c.Peer == name {
			return nil
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("there is no peer %s, nor any other", name)
	}
	return fmt.Errorf("there is no peer %s; there is %s", name, strings.Join(names, ", "))
}
