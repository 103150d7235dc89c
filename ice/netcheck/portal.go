package netcheck

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline/errno"
)

// portal tries TCP and TLS to one portal, and whether its machine is reached by port 443, which networks leave open that close all else.
func (c *Config) portal(ctx context.Context, portal string) PortalReport {
	r := PortalReport{Portal: portal, TLS: Untested, Port443: Untested}
	host, port, err := net.SplitHostPort(portal)
	if err != nil {
		r.TCP, r.Error = Failed, err.Error()
		return r
	}
	other := make(chan State, 1)
	if port != "443" {
		go func() {
			conn, state, _ := c.connect(ctx, net.JoinHostPort(host, "443"))
			if conn != nil {
				conn.Close()
			}
			other <- state
		}()
	}
	begin := time.Now()
	conn, state, err := c.connect(ctx, portal)
	r.TCP = state
	if err != nil {
		r.Error = err.Error()
	} else {
		r.ConnectS = time.Since(begin).Seconds()
		r.Address = conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		c.secure(ctx, &r, conn)
		conn.Close()
	}
	if port != "443" {
		r.Port443 = <-other
	}
	return r
}

// connect makes a connection, or tells what is in the way.
func (c *Config) connect(ctx context.Context, address string) (net.Conn, State, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	conn, err := (&net.Dialer{Control: c.Control}).DialContext(ctx, "tcp", address)
	switch {
	case err == nil:
		return conn, Works, nil
	case errno.Refused(err):
		return nil, Refused, err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errno.Unreached(err):
		return nil, Blocked, err
	}
	return nil, Failed, err
}

// secure looks who answers. Nothing secret is sent.
func (c *Config) secure(ctx context.Context, r *PortalReport, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // only whether there is TLS is asked
	if c.Fingerprint != nil {
		config = c.Fingerprint.TLSConfig()
	}
	err := tls.Client(conn, config).HandshakeContext(ctx)
	switch {
	case err == nil:
		r.TLS = Works
		return
	case errors.Is(err, signal.ErrFingerprint):
		r.OtherCertificate = true
	}
	r.TLS, r.Error = Failed, err.Error()
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		r.TLS = Blocked
	}
}
