package status

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// Stream is an answer that goes on until the node ends it or is asked to. Read is for one goroutine, Stop for any.
type Stream struct {
	conn   net.Conn
	answer *http.Response
}

// Stream asks for an answer that goes on. The error says what to do.
func (n *Node) Stream(ctx context.Context, path string, asked any) (*Stream, error) {
	text, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodPost, "http://node"+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, n.path)
	if err != nil {
		return nil, n.unreachable(err)
	}
	s := &Stream{conn: conn}
	_ = conn.SetDeadline(time.Now().Add(n.client.Timeout)) // until the answer begins
	if err = request.Write(conn); err == nil {
		s.answer, err = http.ReadResponse(bufio.NewReader(conn), request)
	}
	if err != nil {
		return nil, errors.Join(n.unreachable(err), conn.Close())
	}
	if err := n.refusal(s.answer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, conn.SetDeadline(time.Time{})
}

// Read reads the answer.
func (s *Stream) Read(b []byte) (int, error) { return s.answer.Body.Read(b) }

// Stop asks the node to end the answer in order; what there is of it until then is still to be read.
func (s *Stream) Stop() {
	if half, ok := s.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// Note is what the node has said at the end of the answer, to be asked for when Read has returned io.EOF; "": nothing.
func (s *Stream) Note(key string) string { return s.answer.Trailer.Get(key) }

// Close ends it at once.
func (s *Stream) Close() error { return s.conn.Close() }

var _ io.ReadCloser = (*Stream)(nil)
