package tun

import (
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
