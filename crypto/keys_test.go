package crypto

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"
)

// RFC 7748, section 6.1.
func TestPublicVector(t *testing.T) {
	var k PrivateKey
	if _, err := hex.Decode(k[:], []byte("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")); err != nil {
		t.Fatal(err)
	}
	public := k.Public()
	if got := hex.EncodeToString(public[:]); got != "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a" {
		t.Fatal(got)
	}
}

func TestKeysHide(t *testing.T) {
	private, preshared := PrivateKey{1, 2, 3}, PresharedKey{1, 2, 3}
	type config struct {
		Private   PrivateKey
		Preshared *PresharedKey
	}
	var log strings.Builder
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "k", private, "p", preshared, "c", config{private, &preshared})
	js, err := json.Marshal(config{private, &preshared})
	if err != nil {
		t.Fatal(err)
	}
	all := []string{log.String(), string(js)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b"} {
		all = append(all, fmt.Sprintf(verb, private), fmt.Sprintf(verb, preshared), fmt.Sprintf(verb, config{private, &preshared}))
	}
	for _, s := range all {
		if strings.Contains(s, "010203") || strings.Contains(s, "1 2 3") || strings.Contains(s, "1,2,3") ||
			strings.Contains(s, private.Encode()) {
			t.Errorf("a secret shows in %q", s)
		}
	}
	if !strings.Contains(log.String(), hidden) || !strings.Contains(string(js), hidden) {
		t.Errorf("%s %s", log.String(), js)
	}
}

func TestParseKeys(t *testing.T) {
	k, err := GeneratePrivateKey(bytes.NewReader(bytes.Repeat([]byte{0xff}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if k[0] != 0xf8 || k[31] != 0x7f { // RFC 7748, section 5
		t.Fatal("not clamped")
	}
	if back, err := ParsePrivateKey(k.Encode()); err != nil || back != k {
		t.Fatal(back.Encode(), err)
	}
	public := k.Public()
	if back, err := ParsePublicKey(public.String()); err != nil || back != public {
		t.Fatal(back, err)
	}
	var text PublicKey
	if b, _ := public.MarshalText(); text.UnmarshalText(b) != nil || text != public {
		t.Fatal("text does not read back")
	}
	for _, bad := range []string{"", "x", k.Encode() + "A", k.Encode()[:43], strings.Repeat("A", 44), strings.Repeat("=", 44)} {
		if _, err := ParsePresharedKey(bad); err == nil {
			t.Errorf("base64 %q accepted", bad)
		} else if bad != "" && strings.Contains(err.Error(), bad) && len(bad) > 1 {
			t.Errorf("the error repeats %q", bad)
		}
	}
}

func TestZeroKeys(t *testing.T) {
	if !(PrivateKey{}).IsZero() || !(PresharedKey{}).IsZero() || !(PublicKey{}).IsZero() || (PrivateKey{31: 1}).IsZero() {
		t.Error("IsZero")
	}
	if !(PrivateKey{}).Public().IsZero() {
		t.Error("no private key has a public one")
	}
	if !(PublicKey{1}).Equal(PublicKey{1}) || (PublicKey{1}).Equal(PublicKey{2}) {
		t.Error("Equal")
	}
}

func TestGenerateFails(t *testing.T) {
	broken := errors.New("broken")
	if _, err := GeneratePrivateKey(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := GeneratePresharedKey(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Error(err)
	}
}
