package userset_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/platform/userset"
)

func encode(t testing.TB, set *roaring64.Bitmap) []byte {
	t.Helper()
	b, err := set.MarshalBinary()
	require.NoError(t, err)
	return b
}

// sets are of every kind of container, with and without runs, alone and mixed.
func sets() []*roaring64.Bitmap {
	r := rand.New(rand.NewPCG(1, 2))
	out := []*roaring64.Bitmap{roaring64.New(), roaring64.BitmapOf(0), roaring64.BitmapOf(7, 1<<16, 1<<32, math.MaxInt64)}
	for _, n := range []int{10, 4000, 5000, 60_000} {
		for _, spread := range []uint64{1 << 10, 1 << 20, min(1<<34, uint64(n)<<18)} {
			s := roaring64.New()
			for range n {
				s.Add(r.Uint64N(spread))
			}
			out = append(out, s)
		}
	}
	runs := roaring64.New()
	for i := range uint64(9) {
		runs.AddRange(i<<16+i*100, i<<16+5000)
	}
	full := roaring64.New()
	full.AddRange(0, 1<<18)
	out = append(out, runs, full, roaring64.Or(runs, out[len(out)-1]))
	for _, s := range out[:len(out):len(out)] {
		o := s.Clone()
		o.RunOptimize()
		out = append(out, o)
	}
	return out
}

func TestSetsAreReadAsTheyWereWritten(t *testing.T) {
	for i, s := range sets() {
		got, err := userset.Read(encode(t, s))
		require.NoError(t, err, i)
		require.True(t, s.Equals(got), i)
	}
	got, err := userset.Read(nil)
	require.NoError(t, err)
	require.True(t, got.IsEmpty())
}

// part32 is one part of a set under the key 0, with b as its 32-bit bitmap.
func part32(b ...byte) []byte { return append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, b...) }

func TestWhatIsNoSetIsRefused(t *testing.T) {
	good := encode(t, roaring64.BitmapOf(1, 2, 3))
	twice := append(binary.LittleEndian.AppendUint64(nil, 2), good[8:]...)
	twice = append(twice, good[8:]...)
	for name, b := range map[string][]byte{
		"a byte":               {1},
		"text":                 []byte("hello, this is no bitmap"),
		"an end too early":     good[:len(good)-1],
		"more after the end":   append(append([]byte{}, good...), 0),
		"a key that repeats":   twice,
		"a part without any":   part32(0x3a, 0x30, 0, 0, 0, 0, 0, 0),
		"an unknown head":      part32(1, 2, 3, 4, 5, 6, 7, 8),
		"values that descend":  part32(0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0, 0, 9, 0, 2, 0),
		"a value that repeats": part32(0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0, 0, 9, 0, 9, 0),
		"runs that overlap":    part32(0x3b, 0x30, 0, 0, 1, 0, 0, 9, 0, 2, 0, 5, 0, 5, 0, 7, 0, 1, 0),
		"a run past the end":   part32(0x3b, 0x30, 0, 0, 1, 0, 0, 9, 0, 1, 0, 0xff, 0xff, 5, 0),
		"no run":               part32(0x3b, 0x30, 0, 0, 1, 0, 0, 9, 0, 0, 0),
		"a wrong count":        part32(append([]byte{0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0xff, 0x7f, 16, 0, 0, 0}, make([]byte, 8192)...)...),
	} {
		_, err := userset.Read(b)
		require.ErrorIs(t, err, userset.ErrFormat, name)
	}
	_, err := userset.Read(encode(t, roaring64.BitmapOf(1<<63)))
	require.ErrorIs(t, err, userset.ErrRange)
}

// A head may announce 2^64 parts, or a part 65,536 containers: room is made for
// what is there.
func TestAHostileHeadTakesNoMemory(t *testing.T) {
	for name, b := range map[string][]byte{
		"parts":      append(binary.LittleEndian.AppendUint64(nil, 1<<31), make([]byte, 100)...),
		"all parts":  binary.LittleEndian.AppendUint64(nil, math.MaxUint64),
		"containers": part32(0x3a, 0x30, 0, 0, 0xff, 0xff, 0xff, 0xff),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := userset.Read(b)
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, userset.ErrFormat, name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), name)
	}
}

// The library's own check compares every run with every other: half a minute for
// what is read here at once.
func TestManyRunsAreReadInOnePass(t *testing.T) {
	const parts, runs = 40, 1 << 15
	b := binary.LittleEndian.AppendUint64(nil, parts)
	for key := range uint32(parts) {
		b = binary.LittleEndian.AppendUint32(b, key)
		b = append(b, 0x3b, 0x30, 0, 0, 1, 0, 0, 0xff, 0x7f)
		b = binary.LittleEndian.AppendUint16(b, runs)
		for i := range runs {
			b = binary.LittleEndian.AppendUint16(b, uint16(2*i))
			b = binary.LittleEndian.AppendUint16(b, 0)
		}
	}
	start := time.Now()
	got, err := userset.Read(b)
	require.NoError(t, err)
	require.EqualValues(t, parts*runs, got.GetCardinality())
	require.Less(t, time.Since(start), 5*time.Second)
}

func FuzzRead(f *testing.F) {
	for _, s := range sets() {
		if b := encode(f, s); len(b) < 2000 {
			f.Add(b)
		}
	}
	f.Add(part32(0x3b, 0x30, 0, 0, 1, 0, 0, 9, 0, 2, 0, 5, 0, 5, 0, 7, 0, 1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := userset.Read(b)
		if err != nil {
			// What the library takes for sound is not refused here, but for a head
			// that makes it ask for the whole memory.
			if len(b) < 8 || binary.LittleEndian.Uint64(b) > uint64(len(b)) {
				return
			}
			lib := roaring64.New()
			n, lerr := lib.ReadFrom(bytes.NewReader(b))
			if lerr == nil && int(n) == len(b) && lib.Validate() == nil && (lib.IsEmpty() || lib.Maximum() <= math.MaxInt64) {
				t.Fatalf("refused what the library takes: %v", err)
			}
			return
		}
		if got.IsEmpty() {
			return
		}
		// A bitmap that tells the truth about itself.
		n, last := uint64(0), uint64(0)
		it := got.Iterator()
		for ; it.HasNext() && n < 1<<20; n++ {
			u := it.Next()
			if n > 0 && u <= last || !got.Contains(u) {
				t.Fatalf("%d after %d", u, last)
			}
			last = u
		}
		if !it.HasNext() && n != got.GetCardinality() {
			t.Fatalf("%d users, said to be %d", n, got.GetCardinality())
		}
		again, err := userset.Read(encode(t, got))
		if err != nil || !again.Equals(got) {
			t.Fatalf("what was read can't be read again: %v", err)
		}
	})
}
