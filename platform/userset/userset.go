// Package userset reads sets of user numbers that someone else wrote: roaring
// bitmaps of 64 bits in their portable form. The library trusts what it reads;
// here it is looked at first, in one pass, so that damaged or hostile bytes
// neither make room for what is not there nor leave a bitmap that lies.
// Source: https://github.com/RoaringBitmap/RoaringFormatSpec.
package userset

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
)

// What can be wrong with a set.
var (
	// ErrFormat says that the bytes are no portable serialization.
	ErrFormat = errors.New("not a portable serialization of a 64-bit roaring bitmap")
	// ErrRange says that there is a number which no user can have.
	ErrRange = errors.New("user numbers are below 2^63")
)

// Read reads a set of user numbers; nil and empty mean the empty set. Its time
// and memory are in proportion to b, whatever b says of its own size. How many
// users there are is not bounded: a few bytes can name a whole range.
func Read(b []byte) (*roaring64.Bitmap, error) {
	set := roaring64.New()
	if len(b) == 0 {
		return set, nil
	}
	if !valid(b) || set.UnmarshalBinary(b) != nil {
		return nil, ErrFormat
	}
	if !set.IsEmpty() && set.Maximum() > math.MaxInt64 {
		return nil, ErrRange
	}
	return set, nil
}

// cursor reads little-endian numbers; bad says that there were too few bytes.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// smallestPart is a key and the head of a bitmap of 32 bits.
const smallestPart = 4 + 8

// valid walks through b as the library will read it.
func valid(b []byte) bool {
	if len(b) < 8 || binary.LittleEndian.Uint64(b) > uint64(len(b)-8)/smallestPart {
		return false
	}
	c := &cursor{b: b[8:]}
	last := int64(-1)
	for range binary.LittleEndian.Uint64(b) {
		key := int64(c.u32())
		if key <= last || !valid32(c) {
			return false
		}
		last = key
	}
	return !c.bad && len(c.b) == 0
}

// The two heads of a bitmap of 32 bits, and the limits of its containers.
const (
	cookieNoRuns     = 12346
	cookieRuns       = 12347
	maxContainers    = 1 << 16
	maxArray         = 4096
	bitmapBytes      = 1 << 16 / 8
	offsetsFromCount = 4
)

func valid32(c *cursor) bool {
	cookie := c.u32()
	var runs []byte
	n := 0
	switch {
	case cookie == cookieNoRuns:
		n = int(min(c.u32(), maxContainers+1))
	case cookie&0xffff == cookieRuns:
		n = int(cookie>>16) + 1
		runs = c.take((n + 7) / 8)
	}
	heads := c.take(4 * n)
	if c.bad || n < 1 || n > maxContainers {
		return false
	}
	if runs == nil || n >= offsetsFromCount {
		c.take(4 * n) // where each container begins; the library passes it over too
	}
	last := -1
	for i := range n {
		key, count := int(binary.LittleEndian.Uint16(heads[4*i:])), int(binary.LittleEndian.Uint16(heads[4*i+2:]))+1
		if key <= last {
			return false
		}
		last = key
		var ok bool
		switch {
		case runs != nil && runs[i/8]>>(i%8)&1 == 1:
			ok = validRuns(c)
		case count > maxArray:
			ok = validBits(c.take(bitmapBytes), count)
		default:
			ok = validArray(c.take(2 * count))
		}
		if !ok {
			return false
		}
	}
	return !c.bad
}

// validRuns checks a list of starts and lengths less one.
func validRuns(c *cursor) bool {
	n := int(c.u16())
	b := c.take(4 * n)
	if n == 0 || b == nil {
		return false
	}
	next := 0
	for ; len(b) > 0; b = b[4:] {
		start := int(binary.LittleEndian.Uint16(b))
		if start < next {
			return false
		}
		if next = start + int(binary.LittleEndian.Uint16(b[2:])) + 1; next > 1<<16 {
			return false
		}
	}
	return true
}

func validArray(b []byte) bool {
	last := -1
	for ; len(b) > 0; b = b[2:] {
		v := int(binary.LittleEndian.Uint16(b))
		if v <= last {
			return false
		}
		last = v
	}
	return last >= 0
}

func validBits(b []byte, want int) bool {
	for ; len(b) > 0; b = b[8:] {
		want -= bits.OnesCount64(binary.LittleEndian.Uint64(b))
	}
	return want == 0
}
