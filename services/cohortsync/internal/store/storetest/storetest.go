// Package storetest is the conformance suite of store.Store: every engine runs it.
package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const ttl = 5 * time.Second

type suite struct {
	*testing.T
	ctx context.Context
	st  store.Store
}

// Run runs the suite; open returns a new, empty store.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(s suite){
		"cohorts are stored, listed and changed with their revision": cohorts,
		"a cohort in use can't be deleted":                           cohortInUse,
		"a cohort that others refer to stays":                        references,
		"the newest evaluations are kept":                            evaluations,
		"users are kept for a cohort":                                members,
		"a document of cohorts is stored as a whole":                 imports,
		"an external cohort is made once and follows its name":       external,
		"pages of a session take effect together":                    pages,
		"a session that is abandoned has no effect":                  abandoned,
		"dynamic syncs are limited per project":                      dynamicLimit,
		"one run a sync that is active or blocked":                   oneActiveRun,
		"runs of a connector are taken in order":                     connectorOrder,
		"a lost lease can't write":                                   fencing,
		"due syncs start once and drift not":                         due,
		"batches keep users, records and results":                    batches,
		"a finished run drops its records and old runs their users":  retention,
		"ledger blocks are kept and dropped":                         blocks,
		"unattended runs are found, heads of their connector only":   unattended,
		"a segment is taken over with who is in it":                  takingOver,
		"who was left in a segment is kept for the next writer":      leavingAndDeleting,
		"cancelling":      cancelling,
		"deleting a sync": deleting,
	} {
		t.Run(name, func(t *testing.T) {
			st := open(t)
			t.Cleanup(func() { require.NoError(t, st.Close()) })
			test(suite{t, t.Context(), st})
		})
	}
}

func did(event string) *typev1.Expression {
	return &typev1.Expression{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{event}}}}
}

func (s suite) cohort(name string) store.Cohort {
	c, err := s.st.CreateCohort(s.ctx, store.Cohort{ProjectID: 1, DisplayName: name, Definition: did(name), Created: now}, "")
	require.NoError(s, err)
	return c
}

func (s suite) sync(connector int64) store.Sync {
	x, err := s.st.CreateSync(s.ctx, store.Sync{ProjectID: 1, CohortID: s.cohort(fmt.Sprint("c", time.Now().UnixNano())).ID, ConnectorID: connector, Mode: store.Dynamic,
		Interval: time.Minute, NextRun: now.Add(time.Minute), Created: now, Origin: "o"}, "", 60)
	require.NoError(s, err)
	return x
}

func (s suite) run(x store.Sync) store.Run {
	r, _, err := s.st.CreateRun(s.ctx, 1, x.ID, store.ByRequest, false, "parent", now)
	require.NoError(s, err)
	return r
}

func (s suite) take(r store.Run, at time.Time) store.Lease {
	_, l, res, err := s.st.TakeRun(s.ctx, r.ID, "me", at, ttl)
	require.NoError(s, err)
	require.Equal(s, store.Taken, res)
	return l
}

func cohorts(s suite) {
	c := s.cohort("a")
	_, err := s.st.CreateCohort(s.ctx, store.Cohort{ProjectID: 1, DisplayName: "a", Definition: did("x"), Created: now}, "")
	require.True(s, fault.Is(err, fault.Exists))
	got, err := s.st.Cohort(s.ctx, 1, c.ID)
	require.NoError(s, err)
	require.True(s, proto.Equal(did("a"), got.Definition))
	require.Equal(s, now, got.Created)
	_, err = s.st.Cohort(s.ctx, 2, c.ID)
	require.True(s, fault.Is(err, fault.NotFound), "another project's cohort is not found")
	ev := store.Evaluation{AsOf: now, Users: 5, Identified: 4, Took: time.Second, Leaves: []store.LeafStat{{Summary: "did a", Users: 5}}, ProfileSeq: 9}
	require.NoError(s, s.st.SetEvaluation(s.ctx, 1, c.ID, ev))
	got.DisplayName = "b"
	up, err := s.st.UpdateCohort(s.ctx, got)
	require.NoError(s, err)
	require.EqualValues(s, 2, up.Revision)
	require.Equal(s, ev, *up.LastEvaluation)
	_, err = s.st.UpdateCohort(s.ctx, got)
	require.True(s, fault.Is(err, fault.Conflict))
	s.cohort("c")
	list, err := s.st.ListCohorts(s.ctx, 1, 0, 1)
	require.NoError(s, err)
	require.Len(s, list, 1)
	list, err = s.st.ListCohorts(s.ctx, 1, list[0].ID, 10)
	require.NoError(s, err)
	require.Len(s, list, 1)
	require.Equal(s, "c", list[0].DisplayName)
}

func references(s suite) {
	a := s.cohort("a")
	refer := func(ids ...int64) *typev1.Expression {
		l := &typev1.CohortLeaf{}
		for _, id := range ids {
			l.Cohorts = append(l.Cohorts, fmt.Sprintf("projects/1/cohorts/%d", id))
		}
		return &typev1.Expression{Node: &typev1.Expression_InCohort{InCohort: l}}
	}
	b, err := s.st.CreateCohort(s.ctx, store.Cohort{ProjectID: 1, DisplayName: "b", Definition: refer(a.ID), Created: now}, "")
	require.NoError(s, err)
	err = s.st.DeleteCohort(s.ctx, 1, a.ID)
	require.True(s, fault.Is(err, fault.Precondition), "%v", err)
	require.ErrorContains(s, err, "(b)", "it is said who refers to it")
	_, err = s.st.CreateCohort(s.ctx, store.Cohort{ProjectID: 1, DisplayName: "c", Definition: refer(a.ID, 999), Created: now}, "")
	require.True(s, fault.Is(err, fault.Invalid), "%v", err)
	b.Definition = did("x")
	b, err = s.st.UpdateCohort(s.ctx, b)
	require.NoError(s, err)
	require.NoError(s, s.st.DeleteCohort(s.ctx, 1, a.ID), "nobody refers to it any more")
	b.Definition = refer(a.ID)
	_, err = s.st.UpdateCohort(s.ctx, b)
	require.True(s, fault.Is(err, fault.Invalid), "%v", err)
	got, err := s.st.Cohort(s.ctx, 1, b.ID)
	require.NoError(s, err)
	require.True(s, proto.Equal(did("x"), got.Definition), "a refused change changes nothing")
}

func evaluations(s suite) {
	c := s.cohort("a")
	for i := range store.KeptEvaluations + 3 {
		at := now.Add(time.Duration(i) * time.Minute)
		if i%2 == 0 {
			require.NoError(s, s.st.SetEvaluation(s.ctx, 1, c.ID, store.Evaluation{AsOf: at, Users: int64(i), Identified: 1, Took: time.Millisecond}))
			continue
		}
		require.NoError(s, s.st.SetEvaluationFailed(s.ctx, 1, c.ID, store.EvaluationRecord{AsOf: at, Reason: "EVALUATION_FAILED", ReasonText: "no answer"}))
		got, err := s.st.Cohort(s.ctx, 1, c.ID)
		require.NoError(s, err)
		require.Equal(s, "no answer", got.Failed.ReasonText)
		require.EqualValues(s, i-1, got.LastEvaluation.Users, "the last one that succeeded stays")
	}
	got, err := s.st.Cohort(s.ctx, 1, c.ID)
	require.NoError(s, err)
	require.Nil(s, got.Failed)
	list, err := s.st.Evaluations(s.ctx, 1, c.ID, time.Time{}, 2)
	require.NoError(s, err)
	last := now.Add((store.KeptEvaluations + 2) * time.Minute)
	require.Equal(s, store.EvaluationRecord{AsOf: last, Users: store.KeptEvaluations + 2, Identified: 1, Took: time.Millisecond, Version: 1}, list[0])
	require.Equal(s, "EVALUATION_FAILED", list[1].Reason)
	list, err = s.st.Evaluations(s.ctx, 1, c.ID, list[1].AsOf, 10_000)
	require.NoError(s, err)
	require.Len(s, list, store.KeptEvaluations-2)
	list, err = s.st.Evaluations(s.ctx, 2, c.ID, time.Time{}, 10)
	require.NoError(s, err)
	require.Empty(s, list, "another project's cohort")
}

func members(s suite) {
	c := s.cohort("a")
	m, err := s.st.CohortMembers(s.ctx, 1, c.ID)
	require.NoError(s, err)
	require.True(s, m.Users.IsEmpty() && m.Updated.IsZero())
	add := func(users ...uint64) func(*roaring64.Bitmap) *roaring64.Bitmap {
		return func(b *roaring64.Bitmap) *roaring64.Bitmap { return roaring64.Or(b, roaring64.BitmapOf(users...)) }
	}
	_, err = s.st.ChangeCohortMembers(s.ctx, 1, c.ID, now, add(1, 1<<40))
	require.NoError(s, err)
	m, err = s.st.ChangeCohortMembers(s.ctx, 1, c.ID, now.Add(time.Hour), add(2))
	require.NoError(s, err)
	require.Equal(s, []uint64{1, 2, 1 << 40}, m.Users.ToArray())
	m, err = s.st.CohortMembers(s.ctx, 1, c.ID)
	require.NoError(s, err)
	require.Equal(s, []uint64{1, 2, 1 << 40}, m.Users.ToArray())
	require.Equal(s, now.Add(time.Hour), m.Updated)
	_, err = s.st.ChangeCohortMembers(s.ctx, 2, c.ID, now, add(3))
	require.True(s, fault.Is(err, fault.NotFound), "%v", err)
	_, err = s.st.CohortMembers(s.ctx, 1, 999)
	require.True(s, fault.Is(err, fault.NotFound), "%v", err)
}

func imports(s suite) {
	old := s.cohort("old")
	kept := s.cohort("kept")
	list := []store.Cohort{{DisplayName: "new", Description: "n"}, {DisplayName: "old", Description: "o"}, {DisplayName: "kept"}}
	out, err := s.st.ImportCohorts(s.ctx, 1, list, now, func(ids map[string]int64) ([]*typev1.Expression, error) {
		in := &typev1.Expression{Node: &typev1.Expression_InCohort{InCohort: &typev1.CohortLeaf{Cohorts: []string{fmt.Sprintf("projects/1/cohorts/%d", ids["new"])}}}}
		return []*typev1.Expression{did("n"), in, did("kept")}, nil
	})
	require.NoError(s, err)
	require.Equal(s, []string{"new", "old", "kept"}, []string{out[0].DisplayName, out[1].DisplayName, out[2].DisplayName})
	require.EqualValues(s, 1, out[0].Revision)
	require.EqualValues(s, 1, out[0].Version)
	require.Equal(s, old.ID, out[1].ID)
	require.EqualValues(s, 2, out[1].Version)
	require.Equal(s, "o", out[1].Description)
	require.Equal(s, kept.Revision, out[2].Revision, "nothing changed")
	require.True(s, fault.Is(s.st.DeleteCohort(s.ctx, 1, out[0].ID), fault.Precondition), "it is referred to")
	_, err = s.st.ImportCohorts(s.ctx, 1, []store.Cohort{{DisplayName: "other"}}, now, func(map[string]int64) ([]*typev1.Expression, error) {
		return nil, fault.Field("x", "no")
	})
	require.True(s, fault.Is(err, fault.Invalid))
	all, err := s.st.ListCohorts(s.ctx, 1, 0, 10)
	require.NoError(s, err)
	require.Len(s, all, 3, "all or none")
}

func cohortInUse(s suite) {
	x := s.sync(1)
	require.True(s, fault.Is(s.st.DeleteCohort(s.ctx, 1, x.CohortID), fault.Precondition))
	require.NoError(s, s.st.DeleteSync(s.ctx, 1, x.ID, now))
	require.NoError(s, s.st.DeleteCohort(s.ctx, 1, x.CohortID))
	require.True(s, fault.Is(s.st.DeleteCohort(s.ctx, 1, x.CohortID), fault.NotFound))
}

func dynamicLimit(s suite) {
	x := s.sync(1)
	_, err := s.st.CreateSync(s.ctx, store.Sync{ProjectID: 1, CohortID: x.CohortID, ConnectorID: 1, Mode: store.Dynamic, Created: now}, "", 1)
	require.True(s, fault.Is(err, fault.Precondition))
	_, err = s.st.CreateSync(s.ctx, store.Sync{ProjectID: 1, CohortID: x.CohortID, ConnectorID: 1, Mode: store.OneTime, Created: now}, "", 1)
	require.NoError(s, err)
	_, err = s.st.CreateSync(s.ctx, store.Sync{ProjectID: 1, CohortID: 999, ConnectorID: 1, Mode: store.OneTime, Created: now}, "", 1)
	require.True(s, fault.Is(err, fault.NotFound))
}

func oneActiveRun(s suite) {
	x := s.sync(1)
	r := s.run(x)
	again, created, err := s.st.CreateRun(s.ctx, 1, x.ID, store.ByRequest, true, "", now)
	require.NoError(s, err)
	require.False(s, created)
	require.Equal(s, r.ID, again.ID)
	l := s.take(r, now)
	_, err = s.st.FinishRun(s.ctx, l, store.Finish{State: store.Blocked, Reason: "R", KeepLedger: true}, now, 10)
	require.NoError(s, err)
	again, created, err = s.st.CreateRun(s.ctx, 1, x.ID, store.ByRequest, true, "", now)
	require.NoError(s, err)
	require.False(s, created)
	require.Equal(s, store.Blocked, again.State)
	_, err = s.st.RequestCancel(s.ctx, 1, x.ID, r.ID, now)
	require.NoError(s, err)
	next := s.run(x)
	require.NotEqual(s, r.ID, next.ID)
	_, err = s.st.Approve(s.ctx, 1, x.ID, r.ID)
	require.True(s, fault.Is(err, fault.Precondition))
}

func connectorOrder(s suite) {
	a, b, other := s.run(s.sync(1)), s.run(s.sync(1)), s.run(s.sync(2))
	_, _, res, err := s.st.TakeRun(s.ctx, b.ID, "me", now, ttl)
	require.NoError(s, err)
	require.Equal(s, store.NotYet, res)
	s.take(other, now)
	l := s.take(a, now)
	_, _, res, err = s.st.TakeRun(s.ctx, a.ID, "you", now, ttl)
	require.NoError(s, err)
	require.Equal(s, store.NotMine, res)
	_, err = s.st.FinishRun(s.ctx, l, store.Finish{State: store.Succeeded, KeepLedger: true}, now, 10)
	require.NoError(s, err)
	s.take(b, now)
}

func fencing(s suite) {
	x := s.sync(1)
	r := s.run(x)
	old := s.take(r, now)
	later := now.Add(ttl + time.Second)
	fresh := s.take(r, later)
	lost := func(err error) { s.Helper(); require.True(s, fault.Is(err, fault.Conflict), "%v", err) }
	lost(s.st.SaveRun(s.ctx, old, r))
	lost(s.st.AddBatches(s.ctx, old, []store.Batch{{Op: channel.Add}}))
	lost(s.st.SaveBlocks(s.ctx, old, x.ID, nil, nil))
	lost(s.st.ClearPlan(s.ctx, old))
	_, err := s.st.Confirm(s.ctx, old, nil, store.Totals{Sent: 1})
	lost(err)
	_, err = s.st.RenewLease(s.ctx, old, later, ttl)
	lost(err)
	_, err = s.st.FinishRun(s.ctx, old, store.Finish{State: store.Succeeded}, later, 10)
	lost(err)
	require.NoError(s, s.st.ReleaseLease(s.ctx, old), "a lost lease is given back in vain")
	_, err = s.st.RenewLease(s.ctx, fresh, later, ttl)
	require.NoError(s, err)
	require.NoError(s, s.st.ReleaseHolder(s.ctx, "me"))
	_, err = s.st.RenewLease(s.ctx, fresh, later, ttl)
	lost(err)
	got, err := s.st.RunByID(s.ctx, r.ID)
	require.NoError(s, err)
	require.Equal(s, 2, got.Attempts)
	require.Zero(s, got.Totals.Sent)
}

func due(s suite) {
	x := s.sync(1)
	runs, err := s.st.StartDue(s.ctx, now.Add(59*time.Second), 10)
	require.NoError(s, err)
	require.Empty(s, runs)
	at, err := s.st.NextDue(s.ctx)
	require.NoError(s, err)
	require.Equal(s, now.Add(time.Minute), at)
	runs, err = s.st.StartDue(s.ctx, now.Add(70*time.Second), 10)
	require.NoError(s, err)
	require.Len(s, runs, 1)
	require.Equal(s, store.BySchedule, runs[0].Trigger)
	got, err := s.st.Sync(s.ctx, 1, x.ID)
	require.NoError(s, err)
	require.Equal(s, now.Add(2*time.Minute), got.NextRun)
	runs, err = s.st.StartDue(s.ctx, now.Add(10*time.Minute), 10)
	require.NoError(s, err)
	require.Empty(s, runs, "the first is not through")
	require.NoError(s, s.st.SetSyncState(s.ctx, 1, x.ID, store.SyncPaused, &store.Pause{Reason: "REQUESTED", Actor: "me", Since: now}, time.Time{}))
	got, err = s.st.Sync(s.ctx, 1, x.ID)
	require.NoError(s, err)
	require.Equal(s, "me", got.Pause.Actor)
	require.True(s, got.NextRun.IsZero())
}

func batches(s suite) {
	x := s.sync(1)
	r := s.run(x)
	l := s.take(r, now)
	b := store.Batch{Index: 0, Page: 1, Op: channel.Add, Entries: []ledger.Entry{{User: 1, Identifier: "a", Hash: 7}, {User: 1 << 40, Identifier: "b", Hash: 8}}, Flags: []byte{0, store.FlagEmail}, Records: [][]byte{[]byte(`{"x":1}`), []byte(`{}`)}}
	empty := store.Batch{Index: 1, Page: 1, Op: channel.Remove}
	require.NoError(s, s.st.AddBatches(s.ctx, l, []store.Batch{b, empty}))
	got, err := s.st.Batch(s.ctx, r.ID, 0)
	require.NoError(s, err)
	require.Equal(s, b, got)
	got, err = s.st.BatchUsers(s.ctx, r.ID, 0)
	require.NoError(s, err)
	require.Empty(s, got.Records)
	require.Equal(s, b.Entries, got.Entries)
	got, err = s.st.Batch(s.ctx, r.ID, 1)
	require.NoError(s, err)
	require.Empty(s, got.Entries)
	res := store.Result{Index: 0, Outcome: store.Sent, Except: map[int]store.Exception{1: {Outcome: store.FailedOne, Reason: "code_523"}}, Attempts: 2, Throttled: 1}
	_, err = s.st.Confirm(s.ctx, l, []store.Result{res}, store.Totals{Sent: 1, FailedBy: map[string]int64{"code_523": 1}})
	require.NoError(s, err)
	t, err := s.st.Confirm(s.ctx, l, []store.Result{{Index: 1, Outcome: store.Sent}}, store.Totals{Sent: 1})
	require.NoError(s, err)
	require.EqualValues(s, 2, t.Sent)
	require.EqualValues(s, 1, t.FailedBy["code_523"])
	got, err = s.st.Batch(s.ctx, r.ID, 0)
	require.NoError(s, err)
	require.Equal(s, res, *got.Result)
	heads, err := s.st.BatchHeads(s.ctx, r.ID)
	require.NoError(s, err)
	require.Equal(s, []store.BatchHead{{Index: 0, Page: 1, Op: channel.Add, Users: 2, First: 1, Last: 1 << 40, Done: true}, {Index: 1, Page: 1, Op: channel.Remove, Done: true, Clean: true}}, heads)
	require.NoError(s, s.st.SetSkips(s.ctx, l, map[string]*roaring64.Bitmap{"anonymous": roaring64.BitmapOf(3, 4)}))
	sk, err := s.st.Skips(s.ctx, r.ID)
	require.NoError(s, err)
	require.Equal(s, []uint64{3, 4}, sk["anonymous"].ToArray())
	require.NoError(s, s.st.ClearPlan(s.ctx, l))
	heads, err = s.st.BatchHeads(s.ctx, r.ID)
	require.NoError(s, err)
	require.Empty(s, heads)
}

func retention(s suite) {
	x := s.sync(1)
	var runs []store.Run
	for i := range 3 {
		r := s.run(x)
		l := s.take(r, now)
		require.NoError(s, s.st.AddBatches(s.ctx, l, []store.Batch{{Op: channel.Add, Entries: []ledger.Entry{{User: 1, Identifier: "a"}}, Flags: []byte{0}, Records: [][]byte{[]byte("{}")}}}))
		f := store.Finish{State: store.Succeeded, Ledger: store.LedgerState{Members: int64(i), ProfileSeq: 1 << 40, Fingerprint: ^uint64(0), PublishPending: true, Dirty: roaring64.BitmapOf(5), Confirmed: now},
			Orphans: []ledger.Entry{{User: 9, Identifier: fmt.Sprint("o", i)}}, SyncState: store.SyncPaused, Pause: &store.Pause{Reason: "R", Since: now}}
		done, err := s.st.FinishRun(s.ctx, l, f, now, 2)
		require.NoError(s, err)
		require.Equal(s, now, done.Ended)
		runs = append(runs, done)
	}
	heads, err := s.st.BatchHeads(s.ctx, runs[0].ID)
	require.NoError(s, err)
	require.Empty(s, heads)
	b, err := s.st.Batch(s.ctx, runs[1].ID, 0)
	require.NoError(s, err)
	require.Empty(s, b.Records)
	require.Len(s, b.Entries, 1)
	got, err := s.st.Sync(s.ctx, 1, x.ID)
	require.NoError(s, err)
	require.Equal(s, store.SyncPaused, got.State)
	require.EqualValues(s, 2, got.Ledger.Members)
	require.Equal(s, ^uint64(0), got.Ledger.Fingerprint)
	require.True(s, got.Ledger.PublishPending)
	require.False(s, got.Ledger.NeedsFull)
	require.True(s, got.Ledger.Dirty.Contains(5))
	o, err := s.st.Orphans(s.ctx, x.ID)
	require.NoError(s, err)
	require.Equal(s, []ledger.Entry{{User: 9, Identifier: "o2"}}, o)
	last, err := s.st.LastRun(s.ctx, x.ID)
	require.NoError(s, err)
	require.Equal(s, runs[2].ID, last.ID)
	list, err := s.st.ListRuns(s.ctx, 1, x.ID, runs[2].ID, 10)
	require.NoError(s, err)
	require.Len(s, list, 2)
	require.Equal(s, runs[1].ID, list[0].ID)
}

func blocks(s suite) {
	x := s.sync(1)
	l := s.take(s.run(x), now)
	one, rw, err := ledger.Block{No: 2}.Apply([]ledger.Entry{{User: ledger.FirstUser(2) + 1, Identifier: "a", Hash: 1}}, nil)
	require.NoError(s, err)
	big, rw2, err := ledger.Block{No: 1 << 40}.Apply([]ledger.Entry{{User: ledger.FirstUser(1<<40) + 5, Identifier: "b", Hash: 2}}, nil)
	require.NoError(s, err)
	require.NoError(s, s.st.SaveBlocks(s.ctx, l, x.ID, []ledger.Block{one, big}, []bool{rw, rw2}))
	nos, err := s.st.LedgerBlocks(s.ctx, x.ID)
	require.NoError(s, err)
	require.Equal(s, []uint64{2, 1 << 40}, nos)
	m, err := s.st.LedgerMembers(s.ctx, x.ID)
	require.NoError(s, err)
	require.Equal(s, []uint64{ledger.FirstUser(2) + 1, ledger.FirstUser(1<<40) + 5}, m.ToArray())
	b, err := s.st.LedgerBlock(s.ctx, x.ID, 2)
	require.NoError(s, err)
	es, err := b.Entries()
	require.NoError(s, err)
	require.Equal(s, "a", es[0].Identifier)
	gone, rw, err := b.Apply(nil, []uint64{ledger.FirstUser(2) + 1})
	require.NoError(s, err)
	require.NoError(s, s.st.SaveBlocks(s.ctx, l, x.ID, []ledger.Block{gone}, []bool{rw}))
	nos, err = s.st.LedgerBlocks(s.ctx, x.ID)
	require.NoError(s, err)
	require.Equal(s, []uint64{1 << 40}, nos)
	b, err = s.st.LedgerBlock(s.ctx, x.ID, 2)
	require.NoError(s, err)
	require.Empty(s, b.Base)
}

func unattended(s suite) {
	x := s.sync(1)
	a, b := s.run(x), s.run(s.sync(1))
	later := now.Add(time.Minute)
	ids, err := s.st.Unattended(s.ctx, later, later.Add(ttl))
	require.NoError(s, err)
	require.Equal(s, []int64{a.ID}, ids, "b waits for a")
	ids, err = s.st.Unattended(s.ctx, later, later.Add(ttl))
	require.NoError(s, err)
	require.Empty(s, ids)
	l := s.take(a, later)
	later = later.Add(4 * time.Second)
	ids, err = s.st.Unattended(s.ctx, later, later.Add(ttl))
	require.NoError(s, err)
	require.Empty(s, ids, "someone is at it")
	require.NoError(s, s.st.ReleaseLease(s.ctx, l))
	ids, err = s.st.Unattended(s.ctx, later, later.Add(ttl))
	require.NoError(s, err)
	require.Equal(s, []int64{a.ID}, ids)
	_, err = s.st.RequestCancel(s.ctx, 1, x.ID, a.ID, later)
	require.NoError(s, err)
	ids, err = s.st.Unattended(s.ctx, later, later.Add(ttl))
	require.NoError(s, err)
	require.Equal(s, []int64{b.ID}, ids)
}

func cancelling(s suite) {
	x := s.sync(1)
	r := s.run(x)
	got, err := s.st.RequestCancel(s.ctx, 1, x.ID, r.ID, now)
	require.NoError(s, err)
	require.Equal(s, store.Cancelled, got.State)
	_, err = s.st.RequestCancel(s.ctx, 1, x.ID, r.ID, now)
	require.True(s, fault.Is(err, fault.Precondition))
	r = s.run(x)
	l := s.take(r, now)
	r.State, r.Plan = store.Delivering, &store.Plan{Channel: "PARTNER", Pages: map[channel.Op]int{channel.Add: 2}}
	require.NoError(s, s.st.SaveRun(s.ctx, l, r))
	got, err = s.st.RequestCancel(s.ctx, 1, x.ID, r.ID, now)
	require.NoError(s, err)
	require.Equal(s, store.Delivering, got.State)
	require.Equal(s, r.Plan, got.Plan)
	cancel, err := s.st.RenewLease(s.ctx, l, now, ttl)
	require.NoError(s, err)
	require.True(s, cancel)
}

func deleting(s suite) {
	x := s.sync(1)
	r := s.run(x)
	l := s.take(r, now)
	require.NoError(s, s.st.DeleteSync(s.ctx, 1, x.ID, now))
	_, err := s.st.Sync(s.ctx, 1, x.ID)
	require.True(s, fault.Is(err, fault.NotFound))
	require.True(s, fault.Is(s.st.DeleteSync(s.ctx, 1, x.ID, now), fault.NotFound))
	require.True(s, fault.Is(s.st.SaveRun(s.ctx, l, r), fault.Conflict), "a run under way can't write any more")
}
