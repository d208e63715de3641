package duck

import (
	"fmt"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hashSet is an open-addressed set of 64-bit hashes: 8 bytes a slot, at most ¾
// full. The keys are hashes already, so their bits are used as they are. The slots
// lie outside of Go's heap: there they would make the collector keep as much again
// in reserve.
type hashSet struct {
	slots []uint64
	mask  uint64
	n     int
	zero  bool // whether 0, the empty slot, is a member
}

func newHashSet(n int) (*hashSet, error) {
	size := 1 << max(6, bits.Len(uint(n+n/2))) //nolint:gosec // n is a count
	slots, err := mapWords(size)
	return &hashSet{slots: slots, mask: uint64(size - 1)}, err
}

// mapWords returns zeroed memory outside of Go's heap; unmapWords gives it back.
func mapWords(n int) ([]uint64, error) {
	b, err := unix.Mmap(-1, 0, n*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory for %d hashes: %w", n, err)
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), n), nil
}

func unmapWords(w []uint64) {
	if len(w) > 0 {
		_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), len(w)*8)) // it was mapped with this length
	}
}

// free gives the memory back; the set is empty and of no use afterwards.
func (s *hashSet) free() {
	unmapWords(s.slots)
	s.slots, s.n = nil, 0
}

// has reports whether h is a member.
func (s *hashSet) has(h uint64) bool {
	if h == 0 {
		return s.zero
	}
	for i := h & s.mask; ; i = (i + 1) & s.mask {
		switch s.slots[i] {
		case 0:
			return false
		case h:
			return true
		}
	}
}

// add puts h into the set and reports whether it was new.
func (s *hashSet) add(h uint64) (isNew bool, err error) {
	if h == 0 {
		isNew = !s.zero
		s.zero = true
	} else {
		if (s.n+1)*4 > len(s.slots)*3 {
			if err := s.grow(); err != nil {
				return false, err
			}
		}
		isNew = s.put(h)
	}
	if isNew {
		s.n++
	}
	return isNew, nil
}

func (s *hashSet) grow() error {
	old := s.slots
	slots, err := mapWords(2 * len(old))
	if err != nil {
		return err
	}
	s.slots, s.mask = slots, uint64(len(slots)-1)
	for _, v := range old {
		if v != 0 {
			s.put(v)
		}
	}
	unmapWords(old)
	return nil
}

func (s *hashSet) put(h uint64) bool {
	for i := h & s.mask; ; i = (i + 1) & s.mask {
		switch s.slots[i] {
		case 0:
			s.slots[i] = h
			return true
		case h:
			return false
		}
	}
}

// sorted moves the members, in order, to the front of the slots and returns them;
// the set can only be freed afterwards.
func (s *hashSet) sorted() []uint64 {
	out := s.slots[:0]
	for _, v := range s.slots {
		if v != 0 {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	if s.zero { // there is room: the slots are never all taken
		out = append(out, 0)
		copy(out[1:], out)
		out[0] = 0
	}
	return out
}
