package crypto

import (
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"hash"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/tai64n"
)

// unhex decodes a test vector.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Section 5.4, HKDF on HMAC-BLAKE2s. The vectors are those of wireguard-go's device/kdf_test.go.
func TestKDFVectors(t *testing.T) {
	for _, v := range []struct{ key, input, t0, t1, t2 string }{
		{
			"746573742d6b6579", "746573742d696e707574",
			"6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
			"df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
			"fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
		},
		{
			"776972656775617264", "776972656775617264",
			"491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
			"1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
			"31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
		},
		{
			"", "",
			"8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
			"58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
			"0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
		},
	} {
		var t0, t1, t2 [32]byte
		kdf(unhex(t, v.key), unhex(t, v.input), &t0, &t1, &t2)
		for i, c := range []struct {
			got  [32]byte
			want string
		}{{t0, v.t0}, {t1, v.t1}, {t2, v.t2}} {
			if hex.EncodeToString(c.got[:]) != c.want {
				t.Errorf("key %q: output %d is %x, want %s", v.key, i, c.got, c.want)
			}
		}
		var u0, u1 [32]byte
		kdf(unhex(t, v.key), unhex(t, v.input), &u0, &u1, nil)
		if u0 != t0 || u1 != t1 {
			t.Error("two outputs differ from three")
		}
	}
}

// The slow twin is the standard library's HMAC.
func TestHMACAgainstStandardLibrary(t *testing.T) {
	for keyLen := range 65 {
		for inputLen := range 34 {
			key, input := bytes.Repeat([]byte{7}, keyLen), bytes.Repeat([]byte{9}, inputLen)
			h := hmac.New(func() hash.Hash { h, _ := blake2s.New256(nil); return h }, key)
			h.Write(input)
			var got [32]byte
			if hmacBLAKE2s(&got, key, input); !bytes.Equal(got[:], h.Sum(nil)) {
				t.Fatalf("key %d, input %d bytes: %x", keyLen, inputLen, got)
			}
		}
	}
}

// The output may be the memory of the chaining key, as every caller does it.
func TestKDFInPlace(t *testing.T) {
	chain := [32]byte{1, 2, 3}
	var want, wantKey, key [32]byte
	kdf(chain[:], []byte("input"), &want, &wantKey, nil)
	kdf(chain[:], []byte("input"), &chain, &key, nil)
	if chain != want || key != wantKey {
		t.Fatal("in place differs")
	}
}

// Section 5.4 fixes both names; these are the constants that boringtun and the kernel precompute from them.
func TestInitialState(t *testing.T) {
	if got := hex.EncodeToString(initialChain[:]); got != "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36" {
		t.Errorf("chaining key %s", got)
	}
	if got := hex.EncodeToString(initialHash[:]); got != "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3" {
		t.Errorf("hash %s", got)
	}
}

// The points of order at most 8 on Curve25519 and its twist (RFC 7748 has them rejected; the list is from
// https://cr.yp.to/ecdh.html), with and without the ignored top bit.
var lowOrderPoints = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
}

// Kernel noise.c, mix_dh: a zero result is refused.
func TestDHRefusesLowOrder(t *testing.T) {
	private := [32]byte(bytes.Repeat([]byte{0x55}, 32))
	var shared [32]byte
	for _, p := range lowOrderPoints {
		if x25519(&shared, &private, unhex(t, p)) || shared != [32]byte{} {
			t.Errorf("%s accepted", p)
		}
	}
}

// Kernel noise.c, tai64n_now: seconds from 2^62+10, nanoseconds rounded down to 2^24. wireguard-go agrees.
func TestStamp(t *testing.T) {
	for _, v := range []struct {
		at   time.Time
		want string
	}{
		{time.Unix(0, 0), "400000000000000a00000000"},
		{time.Unix(1, 1<<24-1), "400000000000000b00000000"},
		{time.Unix(1, 1<<24), "400000000000000b01000000"},
		{time.Unix(1700000000, 999999999), "400000006553f10a3b000000"},
	} {
		s := stampOf(v.at)
		if got := hex.EncodeToString(s[:]); got != v.want {
			t.Errorf("%v: %s, want %s", v.at, got, v.want)
		}
		if !s.valid() || s.time().After(v.at) || v.at.Sub(s.time()) >= stampUnit {
			t.Errorf("%v reads back as %v", v.at, s.time())
		}
	}
	before := stampOf(time.Now())
	theirs := tai64n.Now()
	after := stampOf(time.Now())
	if before.after(timestamp(theirs)) || timestamp(theirs).after(after) {
		t.Errorf("wireguard-go says %x between %x and %x", theirs, before, after)
	}
}

func TestStampNext(t *testing.T) {
	s := stampOf(time.Unix(5, 0))
	for range 200 { // past three seconds
		n := s.next()
		if !n.after(s) || !n.valid() || n.time().Sub(s.time()) > stampUnit {
			t.Fatalf("%x after %x", n, s)
		}
		s = n
	}
	if s.after(s) {
		t.Fatal("a stamp is after itself")
	}
	if (timestamp{8: 0x3b, 9: 0x9a, 10: 0xca, 11: 0x00}).valid() { // 1e9
		t.Fatal("1e9 nanoseconds are a second")
	}
}
