package portal

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// relayClient makes TURN requests with a node's credentials.
type relayClient struct {
	t            *testing.T
	conn         *net.UDPConn
	login        protocol.Relay
	realm, nonce []byte
}

func newRelayClient(t *testing.T, login protocol.Relay) *relayClient {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(login.Addrs[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &relayClient{t: t, conn: conn, login: login}
}

// ask makes a request and returns the error code of the answer, 0 for a success.
func (c *relayClient) ask(method stun.Method) stun.ErrorCode {
	c.t.Helper()
	setters := []stun.Setter{
		stun.TransactionID, stun.NewType(method, stun.ClassRequest), stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}},
	}
	if c.nonce != nil {
		setters = append(setters, stun.NewUsername(c.login.Username), stun.Realm(c.realm), stun.Nonce(c.nonce),
			stun.NewLongTermIntegrity(c.login.Username, string(c.realm), c.login.Password))
	}
	request, err := stun.Build(setters...)
	if err != nil {
		c.t.Fatal(err)
	}
	answer := &stun.Message{Raw: make([]byte, 1500)}
	for range 10 { // UDP
		if _, err := c.conn.Write(request.Raw); err != nil {
			c.t.Fatal(err)
		}
		c.conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.conn.Read(answer.Raw[:1500])
		if answer.Raw = answer.Raw[:max(n, 0)]; err == nil && answer.Decode() == nil && answer.TransactionID == request.TransactionID {
			return c.code(answer)
		}
	}
	c.t.Fatal("the relay does not answer")
	return 0
}

func (c *relayClient) code(answer *stun.Message) stun.ErrorCode {
	var code stun.ErrorCodeAttribute
	if code.GetFrom(answer) != nil {
		return 0
	}
	if code.Code == stun.CodeUnauthorized {
		c.realm, _ = answer.Get(stun.AttrRealm)
		c.nonce, _ = answer.Get(stun.AttrNonce)
	}
	return code.Code
}

// TestRelayRights: a node's credentials are good for the portal's own relay, and end with its token.
func TestRelayRights(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	login := func(token protocol.Token) protocol.Relay {
		return ask(t, sign(t, token), protocol.SyncRequest{PublicKey: key(t)}).Relays[0]
	}
	c := newRelayClient(t, login(add(t, p, "laptop", protocol.Client)))
	if first, then := c.ask(stun.MethodAllocate), c.ask(stun.MethodAllocate); first != stun.CodeUnauthorized || then != 0 {
		t.Fatalf("Allocate: %d, then %d", first, then)
	}
	next, err := p.RenewToken(t.Context(), "laptop")
	if err != nil {
		t.Fatal(err)
	}
	if code := c.ask(stun.MethodRefresh); code != stun.CodeUnauthorized {
		t.Errorf("Refresh with the credentials of the older token: %d", code)
	}
	c = newRelayClient(t, login(next))
	c.ask(stun.MethodAllocate)
	if code := c.ask(stun.MethodAllocate); code != 0 {
		t.Fatalf("Allocate with the newer token: %d", code)
	}
	if err := p.RemoveNode(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	if code := c.ask(stun.MethodRefresh); code != stun.CodeUnauthorized {
		t.Errorf("Refresh of a node that was removed: %d", code)
	}
}
