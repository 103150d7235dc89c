package crypto

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/c2sp/wycheproof"
)

// IterateX25519 repeats the computation of RFC 7748, section 5.2.
func IterateX25519(n int) string {
	k, u := [32]byte{9}, [32]byte{9}
	for range n {
		var next [32]byte
		x25519(&next, &k, u[:])
		k, u = next, k
	}
	return hex.EncodeToString(k[:])
}

// TestX25519Iterated: the vectors of RFC 7748, section 5.2; the one of a million iterations is in the soak tests.
func TestX25519Iterated(t *testing.T) {
	for n, want := range map[int]string{
		1:    "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
		1000: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
	} {
		if got := IterateX25519(n); got != want {
			t.Errorf("%d iterations: got %s, want %s", n, got, want)
		}
	}
}

// TestX25519Wycheproof: the vectors of C2SP, with points of low order, on the twist and not in canonical form.
func TestX25519Wycheproof(t *testing.T) {
	raw, err := fs.ReadFile(wycheproof.TestVectors, "x25519_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TestGroups []struct {
			Tests []struct {
				TcID                    int
				Public, Private, Shared string
			}
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, group := range file.TestGroups {
		for _, v := range group.Tests {
			public, err1 := hex.DecodeString(v.Public)
			private, err2 := hex.DecodeString(v.Private)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			var shared [32]byte
			ok := x25519(&shared, (*[32]byte)(private), public)
			if got := hex.EncodeToString(shared[:]); got != v.Shared || ok != (shared != [32]byte{}) {
				t.Errorf("case %d: got %s, %v, want %s", v.TcID, got, ok, v.Shared)
			}
			count++
		}
	}
	if count < 500 {
		t.Errorf("%d vectors, want 500 and more", count)
	}
}

// compareX25519 asks crypto/ecdh, which says by an error that the result is zero.
func compareX25519(t *testing.T, private, point [32]byte) {
	t.Helper()
	k, err1 := ecdh.X25519().NewPrivateKey(private[:])
	p, err2 := ecdh.X25519().NewPublicKey(point[:])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	want, err := k.ECDH(p)
	if err != nil {
		want = make([]byte, 32)
	}
	var got [32]byte
	if ok := x25519(&got, &private, point[:]); ok != (err == nil) || !bytes.Equal(got[:], want) {
		t.Errorf("private key %x, point %x: got %x, %v, want %x, %v", private, point, got, ok, want, err)
	}
	if got := publicOf(&private); private != [32]byte{} && !bytes.Equal(got[:], k.PublicKey().Bytes()) {
		t.Errorf("private key %x: got the public key %x, want %x", private, got, k.PublicKey().Bytes())
	}
}

func TestX25519AsStandardLibrary(t *testing.T) {
	draw := rand.NewChaCha8([32]byte{25})
	for range 500 {
		var private, point [32]byte
		draw.Read(private[:])
		draw.Read(point[:])
		compareX25519(t, private, point)
	}
}

func FuzzX25519(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 64 {
			return
		}
		compareX25519(t, [32]byte(b), [32]byte(b[32:]))
	})
}

func BenchmarkX25519(b *testing.B) {
	private, shared := [32]byte{1, 2, 3}, [32]byte{}
	for b.Loop() {
		x25519(&shared, &private, basePoint[:])
	}
}
