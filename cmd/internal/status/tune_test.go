package status

import (
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/cmd/internal/tune"
)

func TestSettings(t *testing.T) {
	var b strings.Builder
	if err := (View{}).WriteSettings(&b, []tune.Setting{
		{Name: "net.core.rmem_max", Want: 4194304, Now: 212992}, {Name: "net.core.rmem_max", Want: 4194304, Now: 4194304, Changed: true, Before: 212992},
		{Name: "net.core.rmem_max", Want: 4194304, Now: 8388608}, {Name: "net.core.rmem_max", Want: 4194304, Missing: true},
	}); err != nil {
		t.Fatal(err)
	}
	golden(t, "tune", b.String(), Columns)
}
