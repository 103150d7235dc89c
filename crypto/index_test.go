package crypto

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
)

// draws is a random source that returns these words in turn, then fails.
func draws(words ...uint32) *bytes.Reader {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return bytes.NewReader(b)
}

// An index whose slot is taken is drawn again, be it the same index or another one.
func TestIndexCollision(t *testing.T) {
	table := newIndexTable()
	p := &Peer{}
	first, ok := table.draw(draws(5), p)
	second, ok2 := table.draw(draws(5, 5+minIndexSlots, 5+4*minIndexSlots, 6), p)
	if !ok || !ok2 || first != 5 || second != 6 || table.used != 2 {
		t.Fatal(first, second, ok, ok2)
	}
	if table.find(5) == nil || table.find(5+minIndexSlots) != nil || table.Lookup(5) != nil {
		t.Fatal("look-up")
	}
	if _, ok := table.draw(draws(), p); ok || table.used != 2 {
		t.Fatal("a failed draw took something")
	}
	same := make([]uint32, 2*maxDraws)
	for i := range same {
		same[i] = 5
	}
	if _, ok := table.draw(draws(same...), p); ok {
		t.Fatal("a broken random source found a slot")
	}
	table.attach(&Keypair{LocalIndex: 5, peer: p})
	if table.Lookup(5) == nil || table.used != 2 {
		t.Fatal("the handshake's index must become the session's")
	}
	table.release(5)
	if table.find(5) != nil || table.used != 1 {
		t.Fatal("release")
	}
}

// A map is the slow twin. Indices come, become sessions and go, through several doublings.
func TestIndexTableAgainstMap(t *testing.T) {
	source := rand.NewChaCha8([32]byte{1})
	dice := rand.New(source)
	table := newIndexTable()
	twin := make(map[uint32]*Keypair)
	var order []uint32
	for range 20000 {
		if len(order) == 0 || dice.IntN(5) > 1 {
			index, ok := table.draw(source, &Peer{})
			if _, dup := twin[index]; !ok || dup {
				t.Fatal("a duplicate index")
			}
			k := &Keypair{LocalIndex: index}
			table.attach(k)
			twin[index] = k
			order = append(order, index)
		} else {
			i := dice.IntN(len(order))
			index := order[i]
			order[i] = order[len(order)-1]
			order = order[:len(order)-1]
			table.release(index)
			delete(twin, index)
		}
		if probe := dice.Uint32(); table.Lookup(probe) != twin[probe] {
			t.Fatal("look-up of a stranger")
		}
	}
	for index, k := range twin {
		if table.Lookup(index) != k {
			t.Fatal("look-up")
		}
	}
	if table.used != len(twin) || 2*table.used > len(table.slots.Load().entry) {
		t.Fatalf("%d in use, %d expected, %d slots", table.used, len(twin), len(table.slots.Load().entry))
	}
}

// Lanes look up while control writes: what stays is found at every moment (run with -race).
func TestIndexTableConcurrent(t *testing.T) {
	source := rand.NewChaCha8([32]byte{2})
	table := newIndexTable()
	index, _ := table.draw(source, &Peer{})
	stays := &Keypair{LocalIndex: index}
	table.attach(stays)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if table.Lookup(index) != stays {
						t.Error("not found")
						return
					}
				}
			}
		})
	}
	for range 5000 {
		i, _ := table.draw(source, &Peer{})
		table.attach(&Keypair{LocalIndex: i})
		if i%3 == 0 {
			table.release(i)
		}
	}
	close(stop)
	wg.Wait()
}

func BenchmarkLookup(b *testing.B) {
	table := newIndexTable()
	source := rand.NewChaCha8([32]byte{3})
	var index uint32
	for range 10000 {
		index, _ = table.draw(source, &Peer{})
		table.attach(&Keypair{LocalIndex: index})
	}
	for b.Loop() {
		table.Lookup(index)
	}
}
