package host

import (
	"bytes"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// traffic is how many packets through the tunnel were let on by us, and how many of them left the machine.
type traffic struct{ entered, left uint64 }

// lossTold is for how long a loss is told of while other packets pass: a firewall may let some on and others not.
const lossTold = 30 * time.Second

// Obstacles lists the chains of others that keep packets through the tunnel from being forwarded, as far as can be told. Of those
// that we let on, each passes two counters of ours, before the first chain of others on the forward hook and behind the last on the
// postrouting hook. Where some did not lately, the chains are listed that drop by default, as a container runtime's, or reject by
// their last rule, as some firewalls', if no rule of their table names our interface; none of these is found if it is of the legacy
// iptables, or a rule before the last: then there is the zero Obstacle, until packets pass for lossTold or, if chains were listed
// before, at once. As long as nothing was forwarded, chains that drop by default are listed, and where all was, none. What is
// dropped before it is forwarded (prerouting, ingress) is not seen.
func (fw *Forwarding) Obstacles() ([]Obstacle, error) {
	now, err := fw.counted()
	if err != nil {
		return nil, err
	}
	chains, err := fw.chains()
	if err != nil {
		return nil, err
	}
	if now.entered < fw.traffic.entered || now.left < fw.traffic.left { // the table was made anew
		fw.traffic = traffic{}
	}
	if now.entered == 0 {
		return fw.unfriendly(chains, false), nil
	}
	if entered, left := now.entered-fw.traffic.entered, now.left-fw.traffic.left; entered > 0 {
		fw.traffic = now
		if left < entered {
			fw.losing, fw.lost = true, time.Now()
		} else if time.Since(fw.lost) >= lossTold {
			fw.losing = false
		}
	}
	if !fw.losing {
		return nil, nil
	}
	list := fw.unfriendly(chains, true)
	known := fw.known
	switch fw.known = len(list) > 0; {
	case fw.known:
	case known: // the chain lets us pass by now
		fw.losing = false
	default:
		list = []Obstacle{{}}
	}
	return list, nil
}

// counted asks for the later counter last, so that packets that come meanwhile do not look lost.
func (fw *Forwarding) counted() (now traffic, err error) {
	if now.entered, err = fw.packets(enteredChain); err == nil {
		now.left, err = fw.packets(leftChain)
	}
	return now, wrapNFT(err, "count what is forwarded")
}

// packets is the sum of the counters of a chain of our table.
func (fw *Forwarding) packets(chain string) (sum uint64, err error) {
	rules, err := fw.conn.GetRules(fw.table, &nftables.Chain{Name: chain, Table: fw.table})
	for _, r := range rules {
		for _, e := range r.Exprs {
			if counter, ok := e.(*expr.Counter); ok {
				sum += counter.Packets
			}
		}
	}
	return sum, err
}

// Strangers tells whether packets were dropped because forwarding was switched on for the tunnel only, and they neither came nor went by
// it.
func (fw *Forwarding) Strangers() bool {
	fw.countStrangers()
	return fw.met
}

// countStrangers is called before the table with the counters goes, too.
func (fw *Forwarding) countStrangers() {
	if !fw.met {
		n, _ := fw.packets(strangersChain) // the chain may be gone
		fw.met = n > 0
	}
}

// unfriendly are the chains of others that drop by their policy, and if last, by their last rule too.
func (fw *Forwarding) unfriendly(chains []*nftables.Chain, last bool) (list []Obstacle) {
	for _, c := range chains {
		if !hooked(c, nftables.ChainHookForward) && !hooked(c, nftables.ChainHookPostrouting) || ours(c.Table) {
			continue
		}
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if (drops || last && fw.refusesLast(c)) && !fw.named(chains, c.Table) {
			list = append(list, Obstacle{Family: familyName(c.Table.Family), Table: c.Table.Name, Chain: c.Name})
		}
	}
	return list
}

// refusesLast tells whether the last rule drops or rejects whatever comes to it.
func (fw *Forwarding) refusesLast(c *nftables.Chain) bool {
	rules, err := fw.conn.GetRules(c.Table, c)
	if err != nil || len(rules) == 0 {
		return false
	}
	for _, e := range rules[len(rules)-1].Exprs {
		switch x := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return true
		case *expr.Target: // of iptables-nft
			return x.Name == "REJECT" || x.Name == "DROP"
		case *expr.Verdict:
			return x.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return false
}

// maxSearched is in how many chains of a table our interface's name is searched for: each costs a question to the kernel, and
// those that orchestrate containers make thousands.
const maxSearched = 100

// named tells whether a rule of the table compares something with our interface's name.
func (fw *Forwarding) named(chains []*nftables.Chain, table *nftables.Table) bool {
	searched := 0
	for _, c := range chains {
		if c.Table.Name != table.Name || c.Table.Family != table.Family {
			continue
		}
		if searched++; searched > maxSearched {
			return false
		}
		rules, err := fw.conn.GetRules(c.Table, c)
		if err != nil {
			continue // it is said once more than needed
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				cmp, ok := e.(*expr.Cmp)
				if ok && cmp.Op == expr.CmpOpEq && string(bytes.TrimRight(cmp.Data, "\x00")) == fw.forward.Interface {
					return true
				}
			}
		}
	}
	return false
}
