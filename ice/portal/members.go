package portal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// MemberStatus describes a portal of the cluster to the operator, as this portal sees it.
type MemberStatus struct {
	Name      string `json:"name"`
	Address   string `json:"address,omitempty"` // for the other members; "": it is not in this portal's list
	Self      bool   `json:"self"`
	Connected bool   `json:"connected"`
	Leads     bool   `json:"leads"`  // it orders the changes at present
	Stores    bool   `json:"stores"` // it has all of the state; one that is new gets it within a minute or so
	// Public is where nodes reach it, and Nodes how many are connected there; of one that was heard of late.
	Public string `json:"public,omitempty"`
	Nodes  int    `json:"nodes"`
}

// Members lists the portals of the cluster: those of the list, and others that have a vote still. Trouble is why no change is taken, ""
// if they are.
func (p *Portal) Members() (list []MemberStatus, trouble string, err error) {
	c := p.config.Cluster
	if c == nil {
		return nil, "", errNoCluster
	}
	state := p.broker.ClusterState(p.memberNames()...)
	connected := map[string]bool{c.Self: true}
	for _, m := range c.Members {
		list = append(list, MemberStatus{Name: m.Name, Address: m.Address, Self: m.Name == c.Self})
	}
	for _, peer := range state.Peers {
		connected[peer.Name] = peer.Connected
		if !c.has(peer.Name) {
			list = append(list, MemberStatus{Name: peer.Name})
		}
	}
	stores := p.holders()
	heard := map[string]*presence{}
	for _, other := range p.others() {
		heard[other.Member] = other
	}
	for i := range list {
		m := &list[i]
		m.Connected, m.Leads, m.Stores = connected[m.Name], m.Name == state.Leader, stores[m.Name]
		if other := heard[m.Name]; other != nil {
			m.Public, m.Nodes = other.Public, len(other.Nodes)
		}
		if m.Self {
			m.Public, m.Nodes = p.public(), p.here()
		}
	}
	if why := p.Trouble(); why != nil {
		trouble = why.Error()
	}
	return list, trouble, nil
}

// memberNames are those of all that have ever been members, as far as this portal knows.
func (p *Portal) memberNames() (list []string) {
	for key := range p.state.members { // frozen since the start
		list = append(list, strings.TrimPrefix(key, prefixMember))
	}
	return list
}

// holders are the members that have all of the state; none if nobody leads.
func (p *Portal) holders() map[string]bool {
	list := map[string]bool{}
	ctx, cancel := context.WithTimeout(context.Background(), holdersTime)
	defer cancel()
	js, err := jetstream.New(p.storeConn)
	if err != nil {
		return list
	}
	stream, err := js.Stream(ctx, "KV_"+bucketName)
	if err != nil || stream.CachedInfo().Cluster == nil {
		return list
	}
	group := stream.CachedInfo().Cluster
	list[group.Leader] = true
	for _, r := range group.Replicas {
		list[r.Name] = r.Current
	}
	return list
}

// holdersTime is how long the store may take to say who has the state.
const holdersTime = 2 * time.Second

var errNoCluster = errors.New("this portal is alone; it is of a cluster when it is started with -cluster")

// here is how many nodes are connected to this portal.
func (p *Portal) here() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.visitors {
		if v.online {
			n++
		}
	}
	return n
}

// removeTime is how long the majority may take to let a member go.
const removeTime = 20 * time.Second

// RemoveMember takes the vote of a portal that is lost, so that the majority is one of those that are left, and has what it stored
// stored by another one.
func (p *Portal) RemoveMember(ctx context.Context, name string) error {
	list, _, err := p.Members()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(m MemberStatus) bool { return m.Name == name })
	switch {
	case i < 0:
		return fmt.Errorf("there is no member %s", name)
	case list[i].Connected:
		return fmt.Errorf("member %s is there; stop it first, or it would be taken in again", name)
	case len(slices.DeleteFunc(list, func(m MemberStatus) bool { return !m.Connected })) < replicas:
		return fmt.Errorf("fewer than %d portals are there; start the one that takes the place of %s first", replicas, name)
	}
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	if err := p.broker.RemovePeer(ctx, name); err != nil {
		return err
	}
	p.log.Info("member removed", "member", name)
	return nil
}
