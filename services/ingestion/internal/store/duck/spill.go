package duck

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
)

// A day with more events than the memory may hold keeps its older hashes in sorted
// files, with a filter in memory that says for almost every new hash that no file
// has it. The files are a copy of a column of the events table: they are deleted as
// soon as they are open, so that nothing of them outlives the process, and made anew
// from the table when the day is next touched.

// page is how many hashes lie between two fences: the part of a file that one
// look-up reads.
const page = 512

// run is a sorted file of hashes.
type run struct {
	file   *os.File
	fences []uint64 // each page's first hash
	n      int
	filter *filter // of at least the hashes of the file
}

// writeRun writes hashes, given in order by next until it returns false, to a file
// in the folder.
func writeRun(dir string, next func() (uint64, bool, error)) (_ *run, err error) {
	f, err := os.CreateTemp(dir, "hashes-*")
	if err != nil {
		return nil, err
	}
	r := &run{file: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	out := bufio.NewWriterSize(f, 256<<10)
	var b [8]byte
	for {
		h, ok, err := next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if r.n%page == 0 {
			r.fences = append(r.fences, h)
		}
		r.n++
		binary.LittleEndian.PutUint64(b[:], h)
		if _, err := out.Write(b[:]); err != nil {
			return nil, err
		}
	}
	return r, out.Flush()
}

func (r *run) close() error { return r.file.Close() }

// has looks h up: one page is read if the filter does not know better.
func (r *run) has(h uint64) (bool, error) {
	if !r.filter.mayHave(h) {
		return false, nil
	}
	at, exact := slices.BinarySearch(r.fences, h)
	if exact {
		return true, nil
	}
	if at == 0 {
		return false, nil
	}
	var b [page * 8]byte
	n, err := r.file.ReadAt(b[:], int64(at-1)*page*8)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	lo, hi := 0, n/8
	for lo < hi {
		mid := (lo + hi) / 2
		switch v := binary.LittleEndian.Uint64(b[mid*8:]); {
		case v == h:
			return true, nil
		case v < h:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false, nil
}

// reader reads a run from its beginning.
func (r *run) reader() func() (uint64, bool, error) {
	in := bufio.NewReaderSize(io.NewSectionReader(r.file, 0, int64(r.n)*8), 256<<10)
	var b [8]byte
	return func() (uint64, bool, error) {
		switch _, err := io.ReadFull(in, b[:]); {
		case errors.Is(err, io.EOF):
			return 0, false, nil
		case err != nil:
			return 0, false, err
		}
		return binary.LittleEndian.Uint64(b[:]), true, nil
	}
}

// merged reads a sorted list and a sorted source together, in order.
func merged(list []uint64, next func() (uint64, bool, error)) func() (uint64, bool, error) {
	var head uint64
	var have, ended bool
	return func() (h uint64, ok bool, err error) {
		if !have && !ended {
			if head, have, err = next(); err != nil {
				return 0, false, err
			}
			ended = !have
		}
		if have && (len(list) == 0 || head <= list[0]) {
			have = false
			return head, true, nil
		}
		if len(list) == 0 {
			return 0, false, nil
		}
		h, list = list[0], list[1:]
		return h, true, nil
	}
}

// filter is a blocked Bloom filter: each hash sets five bits of one block of 64
// bytes. When it is full, at eight bits a hash, about three new hashes in a hundred
// seem to be there.
type filter struct {
	words []uint64 // outside of Go's heap
	room  int      // how many hashes it is made for
}

const (
	filterBits  = 8
	filterProbe = 5
)

// newFilter makes a filter for so many hashes.
func newFilter(room int) (*filter, error) {
	w, err := mapWords((room*filterBits/512 + 1) * 8)
	return &filter{words: w, room: room}, err
}

// place is the block of a hash and the seed of its bits in it. The low bits choose
// the slot of the set in memory, so the filter takes the high ones.
func (f *filter) place(h uint64) (block []uint64, seed uint64) {
	blocks := uint64(len(f.words) / 8)
	at := (h >> 32) * blocks >> 32
	return f.words[at*8 : at*8+8 : at*8+8], h * 0x9e3779b97f4a7c15
}

func (f *filter) add(h uint64) {
	b, seed := f.place(h)
	for range filterProbe {
		b[seed>>61] |= 1 << (seed >> 55 & 63)
		seed *= 0xd6e8feb86659fd93
	}
}

func (f *filter) mayHave(h uint64) bool {
	b, seed := f.place(h)
	for range filterProbe {
		if b[seed>>61]&(1<<(seed>>55&63)) == 0 {
			return false
		}
		seed *= 0xd6e8feb86659fd93
	}
	return true
}

// spilled is the part of a day's hashes that lies in files.
type spilled struct {
	dir  string
	runs []*run
}

// has reports whether h is in a file.
func (s *spilled) has(h uint64) (bool, error) {
	for _, r := range s.runs {
		if there, err := r.has(h); there || err != nil {
			return there, err
		}
	}
	return false, nil
}

// growth is how many lists of new hashes go into one file before another one is
// begun: few files, and no hash is written often.
const growth = 5

// take moves the members of a set to a file and frees the set. After an error it
// has not.
func (s *spilled) take(set *hashSet) (err error) {
	list := set.sorted()
	next := merged(list, func() (uint64, bool, error) { return 0, false, nil })
	var last *run
	if k := len(s.runs) - 1; k >= 0 && s.runs[k].n+len(list) <= s.runs[k].filter.room {
		last = s.runs[k]
		next = merged(list, last.reader())
	}
	r, err := writeRun(s.dir, next)
	if err != nil {
		return err
	}
	if last != nil {
		r.filter = last.filter
		_ = last.close() // nothing else of it is needed any more
		s.runs[len(s.runs)-1] = r
	} else {
		if r.filter, err = newFilter(growth * len(list)); err != nil {
			return errors.Join(err, r.close())
		}
		s.runs = append(s.runs, r)
	}
	for _, h := range list {
		r.filter.add(h)
	}
	set.free()
	return nil
}

func (s *spilled) close() {
	for _, r := range s.runs {
		_ = r.close() // a deleted file
		unmapWords(r.filter.words)
	}
	s.runs = nil
}
