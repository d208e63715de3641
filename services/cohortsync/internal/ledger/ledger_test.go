package ledger_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
)

func TestBlockEqualsAMapAfterAnyChanges(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 7))
		want := map[uint64]ledger.Entry{}
		b := ledger.Block{No: 3}
		rewrites, applies := 0, 60
		for range applies {
			var set []ledger.Entry
			var drop []uint64
			seen := map[uint64]bool{}
			n := 1 + r.IntN(30)
			if r.IntN(10) == 0 {
				n = 500
			}
			for range n {
				u := ledger.FirstUser(3) + r.Uint64N(2000)
				if seen[u] {
					continue
				}
				seen[u] = true
				if r.IntN(3) == 0 {
					drop = append(drop, u)
					delete(want, u)
					continue
				}
				e := ledger.Entry{User: u, Identifier: fmt.Sprintf("id-%d-%d", u, r.IntN(5)), Hash: r.Uint64()}
				set = append(set, e)
				want[u] = e
			}
			next, rewritten, err := b.Apply(set, drop)
			require.NoError(t, err)
			if rewritten {
				rewrites++
			} else {
				require.Equal(t, b.Base, next.Base)
			}
			b = next
		}
		require.Less(t, rewrites, applies, "small changes must not rewrite the block each time")
		got, err := b.Entries()
		require.NoError(t, err)
		require.Len(t, got, len(want))
		for i, e := range got {
			require.Equal(t, want[e.User], e)
			if i > 0 {
				require.Less(t, got[i-1].User, e.User)
			}
		}
		v, err := b.View()
		require.NoError(t, err)
		for u := ledger.FirstUser(3); u < ledger.FirstUser(3)+2000; u++ {
			e, in := v.Lookup(u)
			w, wantIn := want[u]
			require.Equal(t, wantIn, in)
			require.Equal(t, w, e)
		}
	}
}

func TestDroppedAndSetAgainUserHasTheNewDetail(t *testing.T) {
	b, _, err := ledger.Block{}.Apply([]ledger.Entry{{User: 1, Identifier: "old", Hash: 1}, {User: 2, Identifier: "x", Hash: 2}}, nil)
	require.NoError(t, err)
	b, _, err = b.Apply([]ledger.Entry{{User: 1, Identifier: "new", Hash: 9}}, []uint64{1, 2})
	require.NoError(t, err)
	got, err := b.Entries()
	require.NoError(t, err)
	require.Equal(t, []ledger.Entry{{User: 1, Identifier: "new", Hash: 9}}, got)
}

func TestDamagedBlockIsAnErrorNotAnEmptyOne(t *testing.T) {
	b, _, err := ledger.Block{}.Apply([]ledger.Entry{{User: 1, Identifier: "old", Hash: 1}}, nil)
	require.NoError(t, err)
	b.Base = append([]byte{}, b.Base[:len(b.Base)-3]...)
	_, err = b.Entries()
	require.Error(t, err)
}

// A set comes from another service or from the disk: neither may make us ask for
// the memory that its head announces.
func TestDamagedSetIsAnErrorAndTakesNoMemory(t *testing.T) {
	for name, b := range map[string][]byte{
		"a head that announces 2^31 parts": append(binary.LittleEndian.AppendUint64(nil, 1<<31), make([]byte, 64)...),
		"a head that announces 2^64 parts": binary.LittleEndian.AppendUint64(nil, 1<<64-1),
		"no set":                           []byte("not a bitmap"),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ledger.UnmarshalSet(b)
		runtime.ReadMemStats(&after)
		require.Error(t, err, name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), name)
		_, err = ledger.Block{Members: b}.View()
		require.Error(t, err, name)
	}
}

func FuzzUnmarshalEntries(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 5, 3, 1, 2, 'a', 'b', 'c', 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, plain []byte) {
		got, err := ledger.UnmarshalEntries(ledger.Compress(plain))
		if err != nil || len(got) == 0 {
			return
		}
		if len(got)*10 > len(plain) {
			t.Fatalf("%d entries of %d bytes", len(got), len(plain))
		}
		again, err := ledger.UnmarshalEntries(ledger.MarshalEntries(got))
		require.NoError(t, err)
		require.Equal(t, got, again)
	})
}
