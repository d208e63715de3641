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

// has looks h up: one page is read.
func (r *run) has(h uint64) (bool, error) {
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

// filter is a blocked Bloom filter: each hash sets seven bits of one block of 64
// bytes. At ten bits a hash about one new hash in a hundred seems to be there.
type filter struct {
	words []uint64 // outside of Go's heap
	n     int
	room  int
}

const (
	filterBits = 10
	// filterRoom is how many hashes one filter is made for; a day has as many
	// filters as it needs.
	filterRoom = 8 << 20
)

func newFilter() (*filter, error) {
	w, err := mapWords(filterRoom * filterBits / 64 / 8 * 8)
	return &filter{words: w, room: filterRoom}, err
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
	for range 7 {
		b[seed>>61] |= 1 << (seed >> 55 & 63)
		seed *= 0xd6e8feb86659fd93
	}
	f.n++
}

func (f *filter) mayHave(h uint64) bool {
	b, seed := f.place(h)
	for range 7 {
		if b[seed>>61]&(1<<(seed>>55&63)) == 0 {
			return false
		}
		seed *= 0xd6e8feb86659fd93
	}
	return true
}

// spilled is the part of a day's hashes that lies in files.
type spilled struct {
	dir     string
	filters []*filter
	runs    []*run
}

// has reports whether h is in a file.
func (s *spilled) has(h uint64) (bool, error) {
	may := false
	for _, f := range s.filters {
		if f.mayHave(h) {
			may = true
			break
		}
	}
	if !may {
		return false, nil
	}
	for _, r := range s.runs {
		if there, err := r.has(h); there || err != nil {
			return there, err
		}
	}
	return false, nil
}

// growth is how many times its size of new hashes a file takes in before another
// one is begun: few files, and no hash is written often.
const growth = 4

// take moves the members of a set to a file and frees the set. After an error it
// has not.
func (s *spilled) take(set *hashSet) (err error) {
	list := set.sorted()
	next := merged(list, func() (uint64, bool, error) { return 0, false, nil })
	var last *run
	if k := len(s.runs) - 1; k >= 0 && s.runs[k].n < growth*len(list) {
		last = s.runs[k]
		next = merged(list, last.reader())
	}
	r, err := writeRun(s.dir, next)
	if err != nil {
		return err
	}
	for _, h := range list {
		k := len(s.filters) - 1
		if k < 0 || s.filters[k].n == s.filters[k].room {
			f, err := newFilter()
			if err != nil {
				return errors.Join(err, r.close())
			}
			s.filters = append(s.filters, f)
			k++
		}
		s.filters[k].add(h)
	}
	if last == nil {
		s.runs = append(s.runs, r)
	} else {
		_ = last.close() // nothing of it is needed any more
		s.runs[len(s.runs)-1] = r
	}
	set.free()
	return nil
}

func (s *spilled) close() {
	for _, r := range s.runs {
		_ = r.close() // a deleted file
	}
	for _, f := range s.filters {
		unmapWords(f.words)
	}
	s.runs, s.filters = nil, nil
}
