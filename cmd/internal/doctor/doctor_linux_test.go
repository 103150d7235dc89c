package doctor

import (
	"net"
	"strings"
	"testing"
)

// What is found agrees with itself, and no device is left behind.
func TestExamine(t *testing.T) {
	f := Examine()
	if f.OS != "linux" || f.Kernel == "" {
		t.Errorf("system: %+v", f)
	}
	if f.TUN.Made == (f.TUN.Error != "") || f.TUN.Made && f.TUN.QueueLength == 0 {
		t.Errorf("TUN: %+v", f.TUN)
	}
	if f.UDP.Error == "" && (f.UDP.ReceiveBuffer == 0 || f.UDP.SendBuffer == 0) || !f.UDP.Force && f.UDP.ReceiveMost > 0 && f.UDP.ReceiveBuffer > f.UDP.ReceiveMost {
		t.Errorf("UDP: %+v", f.UDP)
	}
	if f.Filter == (f.FilterError != "") {
		t.Errorf("nftables: %v, %q", f.Filter, f.FilterError)
	}
	for _, l := range f.Links {
		if l.Name == "" || l.MTU == 0 || l.ReceiveQueues == 0 {
			t.Errorf("link: %+v", l)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "sluicedoc") {
			t.Errorf("%s is left behind", l.Name)
		}
	}
}
