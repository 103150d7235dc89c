package ice

import (
	"context"
	"net/netip"
	"time"

	"github.com/pion/ice/v2"

	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is the agent's side towards pion: how it is configured and started, and what it says.

func (a *Agent) pionConfig() *ice.AgentConfig {
	now, relayed := time.Duration(0), relayWait
	check, keepalive, disconnected, failed := checkInterval, keepaliveInterval, disconnectedTimeout, failedTimeout
	requests := uint16(maxBindingRequests)
	cfg := &ice.AgentConfig{
		LocalUfrag: a.local.Ufrag, LocalPwd: a.local.Password,
		MulticastDNSMode:    ice.MulticastDNSModeDisabled,
		NetworkTypes:        []ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6},
		CandidateTypes:      []ice.CandidateType{ice.CandidateTypeHost},
		UDPMux:              a.config.Mux,
		Net:                 NoNet{},
		LoggerFactory:       silent{},
		DisableActiveTCP:    true,
		CheckInterval:       &check,
		KeepaliveInterval:   &keepalive,
		DisconnectedTimeout: &disconnected, FailedTimeout: &failed,
		MaxBindingRequests:    &requests,
		HostAcceptanceMinWait: &now, SrflxAcceptanceMinWait: &now, PrflxAcceptanceMinWait: &now,
		RelayAcceptanceMinWait: &relayed,
		IncludeLoopback:        a.config.Mux.rules.loopback,
	}
	if relay := a.config.Relay; relay != nil {
		if urls := relay.URLs(); len(urls) > 0 {
			cfg.Urls, cfg.Net = urls, relay.Net(&Gate{a.config.Mux, a.member})
			cfg.CandidateTypes = append(cfg.CandidateTypes, ice.CandidateTypeRelay)
		}
	}
	return cfg
}

// start waits for its turn and lets pion send checks. Connecting has a goroutine only as long as it waits.
func (a *Agent) start(remote Credentials, candidates int) {
	mux := a.config.Mux
	select {
	case mux.starts <- struct{}{}:
	case <-a.ended.Done():
		return
	}
	defer func() { <-mux.starts }()
	a.awaitCandidates(candidates)
	mux.counters.AgentsStarted.Add(1)
	at := a.pion.Accept
	if a.config.Controlling {
		at = a.pion.Dial
	}
	// With a context that has ended already, pion starts and does not wait for the outcome: that comes as an event.
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_, _ = at(over, remote.Ufrag, remote.Password)
	turn := time.NewTimer(startTime)
	defer turn.Stop()
	select {
	case <-turn.C:
	case <-a.settled.Done():
	}
}

// candidateTime is how long pion may take for candidates, which it adds on goroutines of its own.
const candidateTime = 20 * time.Millisecond

// awaitCandidates waits until pion knows the peer's candidates that came so far. Checks wait in the inbox until pion has started:
// what it knows by then, it does not take for peer-reflexive.
func (a *Agent) awaitCandidates(n int) {
	for end := time.Now().Add(candidateTime); time.Now().Before(end); time.Sleep(candidateTime / 20) {
		if list, err := a.pion.GetRemoteCandidates(); err != nil || len(list) >= n {
			return
		}
	}
}

// onCandidate is pion's callback: a local candidate, or nil after the last.
func (a *Agent) onCandidate(c ice.Candidate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c == nil {
		a.gathered = true
	} else {
		a.news.Candidates = append(a.news.Candidates, c.Marshal())
	}
	a.postNews()
}

// onMapped is the prober's callback: mapped addresses, and whether these are all.
func (a *Agent) onMapped(candidates []string, all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.news.Candidates = append(a.news.Candidates, candidates...)
	a.mapped = a.mapped || all
	a.postNews()
}

// onState is pion's callback.
func (a *Agent) onState(s ice.ConnectionState) {
	switch s {
	case ice.ConnectionStateChecking:
		a.stateChanged(StateChecking)
	case ice.ConnectionStateConnected:
		a.settle()
		a.stateChanged(StateConnected)
	case ice.ConnectionStateDisconnected:
		a.stateChanged(StateDisconnected)
	case ice.ConnectionStateFailed:
		a.failed()
	}
}

// onSelected is pion's callback.
func (a *Agent) onSelected(local, remote ice.Candidate) {
	from, _ := candidateAddress(local)
	to, _ := candidateAddress(remote)
	path, ok := a.pairPath(local, remote)
	if !ok {
		a.awaitChannel([2]ice.Candidate{local, remote})
		a.config.Mux.bind(a.member, from, to)
		return
	}
	a.awaitChannel([2]ice.Candidate{})
	a.selected(path, local.Type().String(), remote.Type().String())
	way := func(to netip.AddrPort) (pipeline.Path, bool) { return a.way(local, from, to) }
	a.config.Mux.follow(a.member, from, to, func(old, next netip.AddrPort) bool { return a.moved(way, old, next) })
}

// awaitChannel notes the pair that is selected as soon as its relay has bound a channel, or that none is.
func (a *Agent) awaitChannel(pair [2]ice.Candidate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unbound = pair
}

// onBound is called when a channel is there that was asked for.
func (a *Agent) onBound() {
	a.mu.Lock()
	pair := a.unbound
	a.mu.Unlock()
	if pair[0] != nil {
		a.onSelected(pair[0], pair[1])
	}
}

// way is how an address is reached from that of a local candidate.
func (a *Agent) way(local ice.Candidate, from, to netip.AddrPort) (pipeline.Path, bool) {
	if local.Type() == ice.CandidateTypeRelay {
		server, channel, ok := a.config.Relay.Channel(from, to)
		return pipeline.Path{Dst: server, Channel: channel}, ok
	}
	return pipeline.Path{Dst: to, Src: from.Addr()}, true
}

// pairPath translates a candidate pair.
func (a *Agent) pairPath(local, remote ice.Candidate) (pipeline.Path, bool) {
	from, ok1 := candidateAddress(local)
	to, ok2 := candidateAddress(remote)
	if !ok1 || !ok2 {
		return pipeline.Path{}, false
	}
	path, ok := a.way(local, from, to)
	path.Fixed = true
	path.Relayed = local.Type() == ice.CandidateTypeRelay || remote.Type() == ice.CandidateTypeRelay
	return path, ok
}

// stateChanged notes how far pion has come.
func (a *Agent) stateChanged(s State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.dead {
		a.news.State = s
		a.postNews()
	}
}

// selected notes the pair that pion has selected.
func (a *Agent) selected(path pipeline.Path, local, remote string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return
	}
	a.inUse.Store(true)
	a.localType, a.remoteType = local, remote
	a.nameRelay(&path)
	a.news.State = StateConnected
	a.config.Mux.counters.PathsFound.Add(1)
	a.publish(path)
}

// moved follows the peer to where a NAT has mapped it anew, and tells whether it could.
func (a *Agent) moved(way func(to netip.AddrPort) (pipeline.Path, bool), from, to netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead || a.path == nil {
		return false
	}
	old, known := way(from)
	path, ok := way(to)
	if !known || !ok || a.path.Dst != old.Dst || a.path.Channel != old.Channel {
		return false // another pair was selected meanwhile, or the channel is gone
	}
	path.Fixed, path.Relayed, a.remoteType = true, a.path.Relayed, ice.CandidateTypePeerReflexive.String()
	a.nameRelay(&path)
	a.publish(path)
	return true
}

// publish tells of a path. The lock is held.
func (a *Agent) publish(path pipeline.Path) {
	a.paths++
	path.Number = a.paths
	a.path = &path
	a.postNews()
}

// failed closes the agent, which has given up; its path goes with it.
func (a *Agent) failed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return
	}
	a.config.Mux.counters.AgentsFailed.Add(1)
	a.news.State = StateFailed
	a.path, a.localType, a.remoteType = nil, "", ""
	a.postNews()
	a.retire()
}

// postNews puts the agent into the mailbox if it is not there. The lock is held.
func (a *Agent) postNews() {
	if !a.queued && !a.dead {
		a.queued = true
		a.config.Mailbox.post(a)
	}
}

// takeNews empties the agent's news for Poll.
func (a *Agent) takeNews() (Event, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queued = false
	e := a.news
	a.news.Candidates = nil
	e.Agent, e.Gathered = a, a.gathered && a.mapped
	e.Path, e.Local, e.Remote = a.path, a.localType, a.remoteType
	return e, !a.closed && (!a.dead || e.State == StateFailed)
}
