package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// maxBlock bounds a block of a stream: a whole superpacket with its comment is less than half of it.
	maxBlock = 1 << 18
	// copyAtOnce is how much is written at once where there is so much, bytes.
	copyAtOnce = 64 << 10
)

// Copy copies a pcapng stream to w, whole blocks only: where writing fails, as on a full disk, and w can be cut (a file), it is cut
// behind the last block that is whole. What has come is written at once when no more is there. That the stream ends within a block is
// its end and no error. n is how many bytes are in w.
func Copy(w io.Writer, r io.Reader) (n int64, err error) {
	in, out := bufio.NewReaderSize(r, copyAtOnce), blockWriter{w: w}
	for {
		if in.Buffered() == 0 || len(out.blocks) >= copyAtOnce {
			if err := out.flush(); err != nil {
				return out.n, err
			}
		}
		size, err := nextBlock(in)
		if err == nil {
			err = out.take(in, size)
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			err = errors.Join(err, out.flush())
			return out.n, err
		}
	}
}

// nextBlock looks how long the next block is.
func nextBlock(in *bufio.Reader) (int, error) {
	head, err := in.Peek(8)
	if err != nil {
		return 0, err
	}
	size := binary.LittleEndian.Uint32(head[4:])
	if size < 12 || size%4 != 0 || size > maxBlock {
		return 0, fmt.Errorf("a block of %d bytes: this is no capture", size)
	}
	return int(size), nil
}

// blockWriter writes blocks, several at a time.
type blockWriter struct {
	w      io.Writer
	n      int64 // written
	blocks []byte
	ends   []int // of each of blocks
}

// take reads a block, nothing of it if it is cut.
func (b *blockWriter) take(in io.Reader, size int) error {
	at := len(b.blocks)
	b.blocks = append(b.blocks, make([]byte, size)...)
	if _, err := io.ReadFull(in, b.blocks[at:]); err != nil {
		b.blocks = b.blocks[:at]
		return err
	}
	b.ends = append(b.ends, len(b.blocks))
	return nil
}

func (b *blockWriter) flush() error {
	written, err := b.w.Write(b.blocks)
	whole := written
	if err != nil {
		whole = 0
		for _, end := range b.ends {
			if end <= written {
				whole = end
			}
		}
		if file, ok := b.w.(interface{ Truncate(size int64) error }); ok && whole < written {
			err = errors.Join(err, file.Truncate(b.n+int64(whole)))
		}
	}
	b.n += int64(whole)
	b.blocks, b.ends = b.blocks[:0], b.ends[:0]
	return err
}
