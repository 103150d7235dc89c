package link

import "time"

// This file is where a relay is left for a direct path: a connection over one looks for another path again and again. Only the side that
// controls does.

// upgradeFirst and UpgradeEvery are when a relayed connection tries to become direct.
const (
	upgradeFirst = 15 * time.Second
	UpgradeEvery = 2 * time.Minute
)

// upgrade is when the next try is.
type upgrade struct{ at time.Duration } // 0: not planned

func (c *connection) followUpgrade() {
	switch {
	case !c.controlling || !c.relayed():
		c.upgrade.at = 0
	case c.upgrade.at == 0:
		c.upgrade.at = c.now + upgradeFirst
	case c.now >= c.upgrade.at:
		c.upgrade.at = c.now + UpgradeEvery + c.link.links.spread(UpgradeEvery/8)
		c.wantAgent(c.now) // of an idle one, too: the next packet may come in a hurry
	}
}
