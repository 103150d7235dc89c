package crypto

import (
	"encoding/binary"
	"io"
	"sync/atomic"
)

// IndexTable finds the session that a packet's receiver index names. Lookup runs on any goroutine without locks; control
// is the one writer.
//
// An index is 32 random bits, never sequential (paper, section 5.4.2: "randomly chosen"), and its low bits are its slot:
// an index whose slot is taken is drawn again. So there is no probing, no chain that a peer could make long, and a
// doubling never makes two entries collide. The table keeps the size that its fullest moment needed: 8 bytes a slot, at
// most half the slots in use, at most four entries a peer (three keypairs and the handshake under way).
type IndexTable struct {
	slots atomic.Pointer[indexSlots]
	used  int // control's
}

type indexSlots struct {
	mask  uint32
	entry []atomic.Pointer[indexEntry]
}

// indexEntry is frozen once stored. keypair is nil while the index belongs to a handshake under way.
type indexEntry struct {
	index   uint32
	peer    *Peer
	keypair *Keypair
}

const (
	minIndexSlots = 64
	// maxDraws ends the search for a free slot. With half of the slots free, random draws fail this often one time in
	// 2^64: then the random source is broken.
	maxDraws = 64
)

func newIndexTable() *IndexTable {
	t := &IndexTable{}
	t.slots.Store(newIndexSlots(minIndexSlots))
	return t
}

func newIndexSlots(n int) *indexSlots {
	return &indexSlots{mask: uint32(n - 1), entry: make([]atomic.Pointer[indexEntry], n)}
}

// Lookup returns the keypair that index names; nil: none does. The caller still checks Acceptable.
func (t *IndexTable) Lookup(index uint32) *Keypair {
	if e := t.find(index); e != nil {
		return e.keypair
	}
	return nil
}

// Owns reports whether index is of one of the peer's sessions, or of its handshake under way. Any goroutine.
func (t *IndexTable) Owns(peer *Peer, index uint32) bool {
	e := t.find(index)
	return e != nil && e.peer == peer
}

func (t *IndexTable) find(index uint32) *indexEntry {
	s := t.slots.Load()
	e := s.entry[index&s.mask].Load()
	if e == nil || e.index != index {
		return nil
	}
	return e
}

// draw takes a new index for a handshake of peer. Not ok: the random source failed.
func (t *IndexTable) draw(rand io.Reader, peer *Peer) (index uint32, ok bool) {
	if s := t.slots.Load(); 2*(t.used+1) > len(s.entry) {
		t.grow()
	}
	s := t.slots.Load()
	for range maxDraws {
		var b [4]byte
		if _, err := io.ReadFull(rand, b[:]); err != nil {
			return 0, false
		}
		index = binary.LittleEndian.Uint32(b[:])
		slot := &s.entry[index&s.mask]
		if slot.Load() == nil {
			slot.Store(&indexEntry{index: index, peer: peer})
			t.used++
			return index, true
		}
	}
	return 0, false
}

// attach makes the handshake's index the session's (kernel peerlookup.c, wg_index_hashtable_replace).
func (t *IndexTable) attach(k *Keypair) {
	s := t.slots.Load()
	s.entry[k.LocalIndex&s.mask].Store(&indexEntry{index: k.LocalIndex, peer: k.peer, keypair: k})
}

// release frees index, which must be in use.
func (t *IndexTable) release(index uint32) {
	s := t.slots.Load()
	s.entry[index&s.mask].Store(nil)
	t.used--
}

// grow doubles the table and publishes it. A lane that still reads the old one misses only what comes later.
func (t *IndexTable) grow() {
	old := t.slots.Load()
	bigger := newIndexSlots(2 * len(old.entry))
	for i := range old.entry {
		if e := old.entry[i].Load(); e != nil {
			bigger.entry[e.index&bigger.mask].Store(e)
		}
	}
	t.slots.Store(bigger)
}
