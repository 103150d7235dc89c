package broker_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

// memberTLS is the TLS of a new member, and its fingerprint. Others are taken if known holds theirs.
func memberTLS(t *testing.T, known func(signal.Fingerprint) bool) (*tls.Config, signal.Fingerprint) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) == 0 || !known(signal.FingerprintOf(c.PeerCertificates[0].Raw)) {
				return errors.New("not a member")
			}
			return nil
		},
	}, signal.FingerprintOf(der)
}

// freePorts are addresses on loopback that nobody has at this moment.
func freePorts(t *testing.T, n int) (list []netip.AddrPort) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		list = append(list, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return list
}

// eventually waits until holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// Of three one is lost, and what was stored is there and can be changed. Who is no member gets no route.
func TestCluster(t *testing.T) {
	t.Parallel()
	strange, stranger := memberTLS(t, func(signal.Fingerprint) bool { return true })
	known := func(f signal.Fingerprint) bool { return f != stranger }
	var list []*broker.Broker
	names, ports := []string{"one", "two", "three"}, freePorts(t, 4)
	join := func(name string, port netip.AddrPort) *broker.Broker {
		cfg, _ := memberTLS(t, known)
		if name == "stranger" {
			cfg = strange
		}
		c := &broker.Cluster{Name: "test", Member: name, Listen: port, TLS: cfg}
		for i, other := range names {
			if other != name {
				c.Routes, c.Known = append(c.Routes, ports[i].String()), append(c.Known, other)
			}
		}
		return start(t, broker.Config{Store: t.TempDir(), Cluster: c})
	}
	for i, name := range names {
		list = append(list, join(name, ports[i]))
	}
	conn, err := list[0].Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	bucket := func(replicas int) func() bool {
		return func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Replicas: replicas})
			if err == nil {
				_, err = kv.PutString(ctx, "k", strings.Repeat("x", replicas))
			}
			return err == nil
		}
	}
	began := time.Now()
	eventually(t, "three replicas", bucket(3))
	t.Logf("three members after %v", time.Since(began))
	outside := join("stranger", ports[3])
	if s := list[0].ClusterState(); s.Size != 3 || s.Leader == "" || len(s.Peers) != 2 {
		t.Errorf("state %+v", s)
	}
	conn.Close()
	list[0].Close()
	other, err := list[2].Connect(nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if js, err = jetstream.New(other); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a write without the first", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		kv, err := js.KeyValue(ctx, "b")
		if err != nil {
			return false
		}
		if e, err := kv.Get(ctx, "k"); err != nil || string(e.Value()) != "xxx" {
			return false
		}
		_, err = kv.PutString(ctx, "k", "xxx")
		return err == nil
	})
	t.Logf("without the first after %v", time.Since(began))
	eventually(t, "the first removed", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err := list[1].RemovePeer(ctx, "one")
		return err == nil && list[1].ClusterState().Size == 2
	})
	t.Logf("removed after %v", time.Since(began))
	for _, peer := range outside.ClusterState().Peers {
		if peer.Connected {
			t.Errorf("who is no member has a connection with %s", peer.Name)
		}
	}
}
