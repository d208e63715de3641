package storetest

import (
	"fmt"

	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// far is a user in another block than the low ones.
var far = ledger.FirstUser(7) + 3

// hold puts users, whose identifiers begin with prefix, into the ledger of a lease's sync.
func (s suite) hold(l store.Lease, x store.Sync, prefix string, users ...uint64) {
	by := map[uint64][]ledger.Entry{}
	for _, u := range users {
		by[ledger.BlockOf(u)] = append(by[ledger.BlockOf(u)], ledger.Entry{User: u, Identifier: fmt.Sprint(prefix, u), Hash: u})
	}
	for no, set := range by {
		b, rw, err := ledger.Block{No: no}.Apply(set, nil)
		require.NoError(s, err)
		require.NoError(s, s.st.SaveBlocks(s.ctx, l, x.ID, []ledger.Block{b}, []bool{rw}))
	}
}

// held are the identifiers in a sync's ledger, and its orphans.
func (s suite) held(x store.Sync) (in, orphans []string) {
	nos, err := s.st.LedgerBlocks(s.ctx, x.ID)
	require.NoError(s, err)
	for _, no := range nos {
		b, err := s.st.LedgerBlock(s.ctx, x.ID, no)
		require.NoError(s, err)
		es, err := b.Entries()
		require.NoError(s, err)
		for _, e := range es {
			in = append(in, e.Identifier)
		}
	}
	left, err := s.st.Orphans(s.ctx, x.ID)
	require.NoError(s, err)
	for _, e := range left {
		orphans = append(orphans, e.Identifier)
	}
	return in, orphans
}

func (s suite) takeOver(l store.Lease, segment string) bool {
	changed, err := s.st.TakeOver(s.ctx, l, segment)
	require.NoError(s, err)
	return changed
}

// plan brings a run to its deliveries at a segment that is left by name.
func (s suite) plan(r store.Run, l store.Lease, segment string) {
	r.State, r.Full, r.Plan = store.Delivering, true, &store.Plan{Segment: segment, ByName: true}
	require.NoError(s, s.st.SaveRun(s.ctx, l, r))
}

func (s suite) finish(l store.Lease, segment string, orphans ...ledger.Entry) {
	_, err := s.st.FinishRun(s.ctx, l, store.Finish{State: store.Succeeded, Segment: segment, Orphans: orphans}, now, 10)
	require.NoError(s, err)
}

func takingOver(s suite) {
	a, b := s.sync(1), s.sync(2)
	ra := s.run(a)
	la := s.take(ra, now)
	require.True(s, s.takeOver(la, "k"), "nobody wrote before")
	require.False(s, s.takeOver(la, "k"), "and now it is ours")
	s.hold(la, a, "a", 1, 2, far)
	s.plan(ra, la, "k")
	s.finish(la, "k", ledger.Entry{User: 9, Identifier: "gone?"})

	// Another sync of the segment learns who is in.
	rb := s.run(b)
	lb := s.take(rb, now)
	s.hold(lb, b, "stale", 5)
	require.True(s, s.takeOver(lb, "k"))
	in, orphans := s.held(b)
	require.Equal(s, []string{"a1", "a2", fmt.Sprint("a", far)}, in)
	require.Equal(s, []string{"gone?"}, orphans)
	w, err := s.st.LastWriter(s.ctx, "k")
	require.NoError(s, err)
	require.Equal(s, b.ID, w)
	got, err := s.st.Sync(s.ctx, 1, b.ID)
	require.NoError(s, err)
	require.True(s, got.Ledger.NeedsFull)

	// A run of the first one was under way all the time, and ends now: whom it put
	// in is known to the second at its next run, by name.
	ra = s.run(a)
	la = s.take(ra, now)
	s.hold(la, a, "a", 1, 2, 3)
	s.hold(la, a, "other", far)
	ra.State, ra.Plan = store.Confirming, &store.Plan{Segment: "k", ByName: true}
	require.NoError(s, s.st.SaveRun(s.ctx, la, ra))
	s.finish(la, "k")
	w, err = s.st.LastWriter(s.ctx, "k")
	require.NoError(s, err)
	require.Equal(s, b.ID, w)
	require.True(s, s.takeOver(lb, "k"), "somebody else wrote")
	in, orphans = s.held(b)
	require.Equal(s, []string{"a1", "a2", fmt.Sprint("a", far)}, in)
	require.ElementsMatch(s, []string{"gone?", "a3", fmt.Sprint("other", far)}, orphans)
	require.False(s, s.takeOver(lb, "k"), "once")
}

func leavingAndDeleting(s suite) {
	a, b := s.sync(1), s.sync(2)
	ra := s.run(a)
	la := s.take(ra, now)
	s.takeOver(la, "old")
	s.hold(la, a, "a", 1, far)
	// The connector was pointed elsewhere: nothing is known of the new place.
	require.True(s, s.takeOver(la, "new"))
	in, _ := s.held(a)
	require.Empty(s, in)
	s.hold(la, a, "n", 4)
	// Back again: as it was left.
	require.True(s, s.takeOver(la, "old"))
	in, _ = s.held(a)
	require.Equal(s, []string{"a1", fmt.Sprint("a", far)}, in)
	// And a channel that replaces whole segments leaves it as well.
	ra.State, ra.Full, ra.Plan = store.Delivering, true, &store.Plan{Segment: "lists"}
	require.NoError(s, s.st.SaveRun(s.ctx, la, ra))
	s.finish(la, "lists")
	rb := s.run(b)
	lb := s.take(rb, now)
	require.True(s, s.takeOver(lb, "old"))
	in, _ = s.held(b)
	require.Equal(s, []string{"a1", fmt.Sprint("a", far)}, in)

	// Deleted in the middle of a run: what its batches may have put in counts.
	s.plan(rb, lb, "old")
	require.NoError(s, s.st.AddBatches(s.ctx, lb, []store.Batch{
		{Index: 0, Page: 1, Op: channel.Add, Entries: []ledger.Entry{{User: 1, Identifier: "a1"}, {User: 6, Identifier: "b6"}}, Flags: []byte{0, 0}},
		{Index: 1, Page: 1, Op: channel.Remove, Entries: []ledger.Entry{{User: 8, Identifier: "not this"}}, Flags: []byte{0}},
	}))
	require.NoError(s, s.st.DeleteSync(s.ctx, 1, b.ID, now))
	c := s.sync(3)
	lc := s.take(s.run(c), now)
	require.True(s, s.takeOver(lc, "old"))
	in, orphans := s.held(c)
	require.Equal(s, []string{"a1", fmt.Sprint("a", far)}, in)
	require.Equal(s, []string{"b6"}, orphans)
	// What was left goes with the cohort.
	require.True(s, s.takeOver(lc, "elsewhere"))
	require.NoError(s, s.st.DeleteSync(s.ctx, 1, c.ID, now))
	require.NoError(s, s.st.DeleteCohort(s.ctx, 1, c.CohortID))
	d := s.sync(4)
	s.takeOver(s.take(s.run(d), now), "elsewhere")
	in, orphans = s.held(d)
	require.Empty(s, append(in, orphans...))
}
