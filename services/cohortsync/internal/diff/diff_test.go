package diff_test

import (
	"math/rand/v2"
	"testing"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/diff"
)

func TestOnlyDifferencesAndTouchedUsersAreLookedAt(t *testing.T) {
	wanted := roaring64.BitmapOf(1, 2, 3, 4, 1<<40)
	sent := roaring64.BitmapOf(2, 3, 4, 9)
	c := diff.Of(wanted, sent, roaring64.BitmapOf(3, 9, 77))
	require.Equal(t, []uint64{1, 1 << 40}, c.Add.ToArray())
	require.Equal(t, []uint64{9}, c.Remove.ToArray())
	require.Equal(t, []uint64{3}, c.Check.ToArray())
	require.EqualValues(t, 2, c.Keep)
	require.Equal(t, []uint64{2, 3, 4}, diff.Of(wanted, sent, nil).Check.ToArray())
}

func TestGuardTripsOnlyAboveShareOfALargeSegment(t *testing.T) {
	g := diff.Guard{MinMembers: 1000, MaxRemovedShare: 0.5}
	require.False(t, g.Trips(1000, 1000), "segments of up to MinMembers are not guarded")
	require.False(t, g.Trips(1000, 2000), "exactly the share is allowed")
	require.True(t, g.Trips(1001, 2000))
}

// BenchmarkDiff10M is figure P4: two ledgers of 10 M members among 20 M users, 1 % churn.
func BenchmarkDiff10M(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	wanted, sent := roaring64.New(), roaring64.New()
	for u := range uint64(20_000_000) {
		if r.IntN(2) == 0 {
			continue
		}
		switch r.IntN(200) {
		case 0:
			wanted.Add(u)
		case 1:
			sent.Add(u)
		default:
			wanted.Add(u)
			sent.Add(u)
		}
	}
	touched := roaring64.New()
	for range 100_000 {
		touched.Add(r.Uint64N(20_000_000))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		c := diff.Of(wanted, sent, touched)
		if c.Add.IsEmpty() || c.Remove.IsEmpty() {
			b.Fatal("no churn")
		}
	}
}
