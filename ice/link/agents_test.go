package link

import (
	"errors"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// A peer that goes on offering has one more agent made where the first could not be; one that only answers waits for ours.
func TestAgentThatCannotBeMade(t *testing.T) {
	for kind, want := range map[signal.Kind]AgentNumber{signal.Offer: 2, signal.Answer: 1} {
		var agents []Task
		links := New(Config{Name: "gate", Task: func(t Task) {
			if t.Kind == TaskAgent {
				agents = append(agents, t)
			}
		}})
		l, now := links.Link("laptop").(*Link), time.Hour
		l.HandleChange(now, pipeline.ChangeUp)
		l.HandlePeer(Peer{Client: true}, true)
		hear := func(kind signal.Kind) {
			l.HandleMessage(now, signal.Msg{From: "laptop", Message: signal.Message{Kind: kind, Generation: 1, Run: 5, Agent: 1, Ufrag: "abcd"}})
			l.HandleView(now, pipeline.View{})
		}
		hear(signal.Offer)
		if len(agents) != 1 || agents[0].Agent != 1 {
			t.Fatalf("an offer has started %v", agents)
		}
		l.HandleAgent(now, agents[0].Serial, 1, Started{Err: errors.New("no room")})
		for range 5 {
			now += agentGap
			hear(kind)
		}
		if last := agents[len(agents)-1]; last.Agent != want || len(agents) != int(want) {
			t.Errorf("%v: %d agents were started, the last is number %d, want %d", kind, len(agents), last.Agent, want)
		}
	}
}
