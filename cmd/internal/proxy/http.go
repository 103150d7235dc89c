package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// idleLimit is how long a connection without a request is kept, on both sides.
	idleLimit = time.Minute
	// mostHeader bounds the header of a request, in bytes.
	mostHeader = 64 << 10
	// mostIdle connections to the other side wait for further requests.
	mostIdle = 64
)

// httpProxy is the HTTP proxy of a Server. Frozen.
type httpProxy struct {
	server    *Server
	http      *http.Server
	forwarder *httputil.ReverseProxy
	transport *http.Transport
	clients   *handedOver
}

func newHTTPProxy(s *Server) httpProxy {
	p := httpProxy{server: s, clients: &handedOver{conns: make(chan net.Conn), closed: make(chan struct{})}}
	p.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, at string) (net.Conn, error) {
			to, err := parseTarget(at, "")
			if err != nil {
				return nil, err
			}
			return s.dial(ctx, to)
		},
		DisableCompression: true, IdleConnTimeout: idleLimit, MaxIdleConns: mostIdle, MaxResponseHeaderBytes: mostHeader,
	}
	quiet := slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug)
	p.forwarder = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host }, Transport: p.transport, ErrorLog: quiet, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, err) },
	}
	p.http = &http.Server{
		Handler: p, ReadHeaderTimeout: s.config.Handshake, IdleTimeout: idleLimit, MaxHeaderBytes: mostHeader, ErrorLog: quiet,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
	}
	s.served.Go(func() { p.http.Serve(p.clients) })
	context.AfterFunc(s.ctx, func() { p.http.Close() })
	return p
}

func (p *httpProxy) close() { p.transport.CloseIdleConnections() }

// serve serves one client to its end.
func (p *httpProxy) serve(client Conn) {
	held := &heldConn{Conn: client, closed: make(chan struct{})}
	if p.clients.hand(held) {
		<-held.closed
	}
}

// ServeHTTP answers a request: a tunnel, or a request to hand on.
func (p httpProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.forwarder.ServeHTTP(w, r)
	case r.URL.Host != "":
		http.Error(w, "sluice: "+r.URL.Scheme+" goes through this proxy by CONNECT only", http.StatusBadRequest)
	default:
		http.Error(w, "sluice: this is an HTTP proxy, and no web server", http.StatusBadRequest)
	}
}

func (p httpProxy) connect(w http.ResponseWriter, r *http.Request) {
	to, err := parseTarget(r.Host, "443")
	if err != nil {
		http.Error(w, "sluice: "+err.Error(), http.StatusBadRequest)
		return
	}
	there, err := p.server.dial(r.Context(), to)
	if err != nil {
		refuse(w, err)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		there.Close()
		return
	}
	defer conn.Close()
	client := conn.(*heldConn)
	client.SetDeadline(time.Now().Add(p.server.config.Handshake))
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		there.Close()
		return
	}
	client.SetDeadline(time.Time{})
	early := io.LimitReader(buffered.Reader, int64(buffered.Reader.Buffered()))
	p.server.join(client, io.MultiReader(early, client), there)
}

// parseTarget reads HOST:PORT, or HOST where there is a port to assume.
func parseTarget(text, port string) (to Target, err error) {
	host, portText, err := net.SplitHostPort(text)
	if err != nil && port != "" {
		host, portText, err = text, port, nil
	}
	number, bad := strconv.ParseUint(portText, 10, 16)
	if err != nil || bad != nil || host == "" || number == 0 {
		return to, fmt.Errorf("%q is no HOST:PORT", text)
	}
	return Target{host, uint16(number)}, nil
}

// refuse answers with why there is no connection.
func refuse(w http.ResponseWriter, err error) {
	code := http.StatusBadGateway
	switch {
	case errors.Is(err, ErrNotRouted):
		code = http.StatusForbidden
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		code = http.StatusGatewayTimeout
	}
	http.Error(w, "sluice: "+Why(err), code)
}

// heldConn tells when it is closed.
type heldConn struct {
	Conn
	once   sync.Once
	closed chan struct{}
}

func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// handedOver is a listener whose clients were accepted elsewhere.
type handedOver struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// hand gives a client to whoever accepts; false: nobody does any more.
func (h *handedOver) hand(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		return false
	}
}

func (h *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handedOver) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handedOver) Addr() net.Addr { return &net.TCPAddr{} }
