package speedtest

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// tunnelConfig is what one node is told: its key and port, and its only peer.
type tunnelConfig struct {
	PrivateKey [32]byte
	ListenPort uint16
	PeerKey    [32]byte // public
	Endpoint   netip.AddrPort
	AllowedIPs []netip.Prefix
}

// encode is the set request of the cross-platform userspace configuration protocol (wireguard.com/xplatform).
func (c tunnelConfig) encode() string {
	var b strings.Builder
	b.WriteString("set=1\n")
	fmt.Fprintf(&b, "private_key=%s\n", hex.EncodeToString(c.PrivateKey[:]))
	fmt.Fprintf(&b, "listen_port=%d\n", c.ListenPort)
	b.WriteString("replace_peers=true\n")
	fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(c.PeerKey[:]))
	fmt.Fprintf(&b, "endpoint=%s\n", c.Endpoint)
	b.WriteString("replace_allowed_ips=true\n")
	for _, p := range c.AllowedIPs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", p)
	}
	b.WriteString("\n")
	return b.String()
}

// readAnswer reads lines up to the blank one. The error is that of the errno line, or of the connection.
func readAnswer(r io.Reader) error {
	scanner := bufio.NewScanner(r)
	errno := ""
	for scanner.Scan() {
		line := scanner.Text()
		if line == "" {
			break
		}
		if value, ok := strings.CutPrefix(line, "errno="); ok {
			errno = value
		}
	}
	if err := scanner.Err(); err != nil {
		return err
	}
	if errno == "" {
		return errors.New("the answer has no errno line")
	}
	n, err := strconv.Atoi(errno)
	if err != nil {
		return fmt.Errorf("the answer has errno=%q", errno)
	}
	if n != 0 {
		return fmt.Errorf("the program refused the configuration: errno %d", n)
	}
	return nil
}

// configure sends c to the UAPI socket at path.
func configure(path string, c tunnelConfig) error {
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return fmt.Errorf("UAPI: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return fmt.Errorf("UAPI: %w", err)
	}
	if _, err := io.WriteString(conn, c.encode()); err != nil {
		return fmt.Errorf("UAPI: %w", err)
	}
	if err := readAnswer(conn); err != nil {
		return fmt.Errorf("UAPI: %w", err)
	}
	return nil
}
