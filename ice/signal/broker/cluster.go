package broker

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Cluster makes the server a member of a cluster, whose members pass messages on to one another and share JetStream: what is stored
// with several replicas is at several members, and is changed by their majority (Raft). It is frozen once given to Start.
type Cluster struct {
	Name string
	// Member is this server's name, no other member's, ever: who has lost the store must come with another name, since the majority counts
	// on what this one has acknowledged.
	Member string
	// Listen is the TCP address for the other members; port 0 picks a free one.
	Listen netip.AddrPort
	// Advertise is the host:port under which they reach it, and Routes those under which it reaches them.
	Advertise string
	Routes    []string
	// Known are the names of the other members there are. They count at the first start only: a new member then waits for their
	// majority, and cannot make another cluster with a second new one.
	Known []string
	// TLS is for both directions of connections between members, and checks the other side both ways.
	TLS *tls.Config
}

// settle takes a free port if none is named, sees that it can be had, and makes routes. A server that has none will not store anything in a cluster; its own address
// does for the first member, which finds out that it has met itself.
func (c *Cluster) settle() error {
	probe, err := net.Listen("tcp", c.Listen.String())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClusterListen, err)
	}
	c.Listen = netip.AddrPortFrom(c.Listen.Addr(), uint16(probe.Addr().(*net.TCPAddr).Port))
	probe.Close()
	if len(c.Routes) == 0 {
		own := c.Advertise
		if own == "" {
			own = c.Listen.String()
		}
		c.Routes = []string{own}
	}
	return nil
}

// ErrClusterListen: the address for other members cannot be had.
var ErrClusterListen = errors.New("cannot listen for other portals")

// apply makes o those of a member.
func (c *Cluster) apply(o *server.Options) {
	o.ServerName = c.Member
	o.Cluster = server.ClusterOpts{
		Name: c.Name, Host: c.Listen.Addr().String(), Port: int(c.Listen.Port()), Advertise: c.Advertise, NoAdvertise: true,
		TLSConfig: c.TLS, TLSTimeout: 5, PoolSize: 1, ConnectRetries: 1 << 30,
		PingInterval: routePing, MaxPingsOut: 2, Compression: server.CompressionOpts{Mode: server.CompressionOff},
	}
	for _, r := range c.Routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: r})
	}
}

// startRoutes opens the port for members. The server does so when its port for clients is open, which it has none of. Its own goroutine
// goes on waiting for that, and is counted as ended by this call.
func startRoutes(srv *server.Server) {
	ready := make(chan struct{})
	close(ready)
	srv.StartRouting(ready)
}

// routePing is how often members look whether the others are there. Raft notices a silent one in a few seconds by itself.
const routePing = 5 * time.Second

// seed writes which members have a vote at the first start. By itself the server takes as many as it happens to meet, and two at least:
// one alone could not begin, and two that join could agree without those that were there. The file is the server's own (peers.idx):
// the size of the cluster, how many peers, the first eight characters of the hash of each one's name, all in little endian, and a word
// that is 0.
func (c *Cluster) seed(store string) error {
	folder := filepath.Join(store, server.JetStreamStoreDir, server.DEFAULT_SYSTEM_ACCOUNT, "_js_", "_meta_")
	path := filepath.Join(folder, "peers.idx")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	peers := append(slices.Clone(c.Known), c.Member)
	text := binary.LittleEndian.AppendUint32(nil, uint32(len(peers)))
	text = binary.LittleEndian.AppendUint32(text, uint32(len(peers)))
	for _, name := range peers {
		text = append(text, peerID(name)...)
	}
	return os.WriteFile(path, append(text, 0, 0), 0o600)
}

// peerID is what Raft knows a server by.
func peerID(name string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(name))
	id := make([]byte, 8)
	for i := range id {
		id[i] = digits[int(sum[i])%len(digits)]
	}
	return string(id)
}

// Peer is another member as this one sees it.
type Peer struct {
	Name      string
	Connected bool
}

// ClusterState is how the cluster is from here.
type ClusterState struct {
	Leader string // "": none, so nothing can be changed
	Size   int    // members that have a vote
	Peers  []Peer
}

// ClusterState looks at the cluster. The server forgets the name of a member that it has not met since its own start, and keeps a hash
// of it: known are names that such a one may have.
func (b *Broker) ClusterState(known ...string) (state ClusterState) {
	connected := map[string]bool{}
	if routes, err := b.server.Routez(nil); err == nil {
		for _, r := range routes.Routes {
			connected[r.RemoteName] = true
		}
	}
	jsz, err := b.server.Jsz(nil)
	if err == nil && jsz.Meta != nil {
		state.Leader, state.Size = jsz.Meta.Leader, jsz.Meta.Size
		for _, r := range jsz.Meta.Replicas {
			if i := slices.IndexFunc(known, func(name string) bool { return peerID(name) == r.Peer }); i >= 0 {
				r.Name = known[i]
			}
			state.Peers = append(state.Peers, Peer{Name: r.Name, Connected: connected[r.Name]})
			delete(connected, r.Name)
		}
	}
	for name := range connected {
		state.Peers = append(state.Peers, Peer{Name: name, Connected: true})
	}
	slices.SortFunc(state.Peers, func(x, y Peer) int { return strings.Compare(x.Name, y.Name) })
	return state
}

// RemovePeer takes a member's vote, and what it stores to others. A majority must be there, with or without that member.
func (b *Broker) RemovePeer(ctx context.Context, name string) error {
	conn, err := nats.Connect("", nats.InProcessServer(b.server), nats.Token(b.auth.system))
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	defer conn.Close()
	body, err := json.Marshal(server.JSApiMetaServerRemoveRequest{Server: name, Peer: peerID(name)})
	if err != nil {
		return err
	}
	m, err := conn.RequestWithContext(ctx, server.JSApiRemoveServer, body)
	if err != nil {
		return fmt.Errorf("broker: no majority answers: %w", err)
	}
	var answer server.JSApiMetaServerRemoveResponse
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	if answer.Error != nil && answer.Error.ErrCode != uint16(server.JSClusterServerNotMemberErr) {
		return fmt.Errorf("broker: %w", errors.New(answer.Error.Description))
	}
	return nil
}
