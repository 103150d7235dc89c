package aead

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"math/big"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"
	"golang.org/x/crypto/chacha20poly1305"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keyOf(t testing.TB, s string) *[KeySize]byte { return (*[KeySize]byte)(unhex(t, s)) }

const (
	key0 = "0000000000000000000000000000000000000000000000000000000000000000"
	key1 = "0000000000000000000000000000000000000000000000000000000000000001"
)

// RFC 8439, appendix A.1: block 1 of the key stream is what a text of zeros is sealed to. The nonces of vectors 2 and 3
// are zero, as a counter of 0 makes them.
func TestRFC8439KeyStream(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		for _, v := range []struct{ name, key, block string }{
			{"A.1 #2", key0, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed" +
				"29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"},
			{"A.1 #3", key1, "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a" +
				"8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"},
		} {
			run := []Packet{{Dst: make([]byte, 64+Overhead), Src: make([]byte, 64)}}
			impl.New(keyOf(t, v.key)).Seal(run)
			if want := unhex(t, v.block); !bytes.Equal(run[0].Dst[:64], want) {
				t.Errorf("%s: got %x, want %x", v.name, run[0].Dst[:64], want)
			}
		}
	})
}

// RFC 8439, section 2.6.2 and appendix A.4: Poly1305 keys from nonces that start with four zero bytes. An empty packet's
// tag is 2^128 (its length block) times r, plus s, which shows the key.
func TestRFC8439Poly1305Key(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		for _, v := range []struct{ name, key, nonce, polyKey string }{
			{"2.6.2", "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", "0001020304050607",
				"8ad5a08b905f81cc815040274ab29471a833b637e3fd0da508dbb8e2fdd1a646"},
			{"A.4 #1", key0, "0000000000000000", "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"},
			{"A.4 #2", key1, "0000000000000002", "ecfa254f845f647473d3cb140da9e87606cb33066c447b87bc2666dde3fbb739"},
			{"A.4 #3", "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0", "0000000000000002",
				"965e3bc6f9ec7ed9560808f4d229f94b137ff275ca9b3fcbdd59deaad23310ae"},
		} {
			run := make([]Packet, 8)
			for i := range run {
				run[i] = Packet{Dst: make([]byte, Overhead), Counter: binary.LittleEndian.Uint64(unhex(t, v.nonce))}
			}
			impl.New(keyOf(t, v.key)).Seal(run)
			want := polyByHand([32]byte(unhex(t, v.polyKey)), nil)
			for i := range run {
				if !bytes.Equal(run[i].Dst, want[:]) {
					t.Errorf("%s: tag %x, want %x", v.name, run[i].Dst, want)
				}
			}
		}
	})
}

// polyByHand is Poly1305 as RFC 8439, section 2.5.1 writes it, in arbitrary precision, over the text, zeros up to a
// multiple of 16, and the lengths 0 and len(text) (section 2.8).
func polyByHand(key [32]byte, text []byte) [16]byte {
	lengths := make([]byte, 16)
	binary.LittleEndian.PutUint64(lengths[8:], uint64(len(text)))
	return polyBlocks(key, append(append(bytes.Clone(text), make([]byte, -len(text)&15)...), lengths...))
}

func polyBlocks(key [32]byte, blocks []byte) [16]byte {
	clamp, _ := new(big.Int).SetString("0ffffffc0ffffffc0ffffffc0fffffff", 16)
	r := new(big.Int).And(littleEndian(key[:16]), clamp)
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 130), big.NewInt(5))
	h := new(big.Int)
	for len(blocks) > 0 {
		h.Add(h, littleEndian(blocks[:16]))
		h.Add(h, new(big.Int).Lsh(big.NewInt(1), 128))
		h.Mul(h, r).Mod(h, p)
		blocks = blocks[16:]
	}
	h.Add(h, littleEndian(key[16:]))
	var tag [16]byte
	for i := range tag {
		tag[i] = byte(new(big.Int).Rsh(h, uint(8*i)).Uint64())
	}
	return tag
}

func littleEndian(b []byte) *big.Int {
	x := new(big.Int)
	for i := len(b) - 1; i >= 0; i-- {
		x.Lsh(x, 8).Add(x, big.NewInt(int64(b[i])))
	}
	return x
}

// wycheproofVector is one case of Wycheproof's chacha20_poly1305_test.json.
type wycheproofVector struct {
	ID                            int `json:"tcId"`
	Comment, Result               string
	Key, IV, AAD, Msg, CT, Tag    string
	key, nonce, aad, msg, ct, mac []byte
}

func wycheproofVectors(t *testing.T) []wycheproofVector {
	raw, err := fs.ReadFile(wycheproof.TestVectors, "chacha20_poly1305_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TestGroups []struct{ Tests []wycheproofVector }
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	var all []wycheproofVector
	for _, g := range file.TestGroups {
		for _, v := range g.Tests {
			v.key, v.nonce, v.aad = unhex(t, v.Key), unhex(t, v.IV), unhex(t, v.AAD)
			v.msg, v.ct, v.mac = unhex(t, v.Msg), unhex(t, v.CT), unhex(t, v.Tag)
			all = append(all, v)
		}
	}
	if len(all) < 300 {
		t.Fatalf("only %d vectors", len(all))
	}
	return all
}

// No Wycheproof vector has both a nonce that starts with four zero bytes and no additional data, as a Cipher needs. So
// they pin the reference here, and the Poly1305 kernels where one can be called by itself.
func TestWycheproofReference(t *testing.T) {
	for _, v := range wycheproofVectors(t) {
		if len(v.nonce) != chacha20poly1305.NonceSize {
			continue
		}
		var g generic
		g.init((*[KeySize]byte)(v.key))
		text, err := g.aead.Open(nil, v.nonce, append(bytes.Clone(v.ct), v.mac...), v.aad)
		if (err == nil) != (v.Result == "valid") {
			t.Errorf("%d %s: %v, want %s", v.ID, v.Comment, err, v.Result)
		}
		if err == nil && !bytes.Equal(text, v.msg) {
			t.Errorf("%d %s: opened to %x, want %x", v.ID, v.Comment, text, v.msg)
		}
	}
}
