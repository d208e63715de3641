// Package ledgertest is what every ledger.Ledger must do.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Open opens the ledger of a directory, the same data each time.
type Open func(t *testing.T, dir string) ledger.Ledger

var at = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for name, f := range map[string]func(*testing.T, Open){
		"FreezeKeepsTheFirstSystem":           freeze,
		"UserNumbersAreDenseAndNeverReused":   numbers,
		"AFailedUpdateLeavesNothing":          rollback,
		"ConcurrentUpdatesAreSerial":          serial,
		"MergesMoveTheClusterAndItsSequence":  merge,
		"JobsAreStoredAndOneRunsAtATime":      reclassifications,
		"ProfilesChangeUnderASequence":        profiles,
		"MembersAreReadDenseAndSparse":        members,
		"WaitingUsersAreFoundByTheirValue":    waiting,
		"WarningsAreCountedByKind":            warnings,
		"GroupsAreWrittenReadAndDeleted":      groups,
		"ProjectsAreApart":                    apart,
		"EverythingSurvivesReopening":         reopen,
		"RepointMovesAnAliasWithoutItsEvents": repoint,
	} {
		t.Run(name, func(t *testing.T) { f(t, open) })
	}
}

type fixture struct {
	*testing.T
	l   ledger.Ledger
	ctx context.Context //nolint:containedctx // a test's own
}

func begin(t *testing.T, open Open) *fixture {
	t.Helper()
	f := &fixture{T: t, l: open(t, t.TempDir()), ctx: context.Background()}
	f.freeze(1)
	t.Cleanup(func() {
		if err := f.l.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) freeze(id int64) {
	f.Helper()
	if _, err := f.l.Freeze(f.ctx, id, project.Simplified); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) update(id int64, fn func(ledger.Tx) error) {
	f.Helper()
	if err := f.l.Update(f.ctx, id, fn); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) users(ids ...string) {
	f.Helper()
	f.update(1, func(tx ledger.Tx) error { _, err := tx.NewUsers(ids, at); return err })
}

func (f *fixture) id(id string) ledger.ID {
	f.Helper()
	m, err := f.l.IDs(f.ctx, 1, []string{id})
	if err != nil {
		f.Fatal(err)
	}
	return m[id]
}

func freeze(t *testing.T, open Open) {
	f := begin(t, open)
	if sys, err := f.l.Freeze(f.ctx, 1, project.Original); err != nil || sys != project.Simplified {
		t.Errorf("second freeze: %v, %v", sys, err)
	}
	if err := f.l.Update(f.ctx, 99, func(ledger.Tx) error { return nil }); err == nil {
		t.Error("an update of an unknown project succeeded")
	}
	if st, err := f.l.State(f.ctx, 99); err != nil || st != (ledger.State{}) {
		t.Errorf("state of an unknown project: %+v, %v", st, err)
	}
}

func numbers(t *testing.T, open Open) {
	f := begin(t, open)
	many := make([]string, 500) // more than one statement carries
	for i := range many {
		many[i] = fmt.Sprint("id", i)
	}
	f.users(many...)
	f.users("next")
	if id := f.id("next"); id.UserNo != 501 || id.Canonical != 501 || id.Reason != ledger.FirstSeen || !id.At.Equal(at) {
		t.Errorf("next: %+v", id)
	}
	found, err := f.l.IDs(f.ctx, 1, append(many, "unknown"))
	if err != nil || len(found) != 500 {
		t.Fatalf("%d ids, %v", len(found), err)
	}
	for i, id := range many {
		if found[id].UserNo != uint64(i+1) {
			t.Fatalf("%s has number %d", id, found[id].UserNo)
		}
	}
	if err := f.l.Update(f.ctx, 1, func(tx ledger.Tx) error { _, err := tx.NewUsers([]string{"id7"}, at); return err }); err == nil {
		t.Error("a known id became a second user")
	}
}

func rollback(t *testing.T, open Open) {
	f := begin(t, open)
	stop := errors.New("stop")
	err := f.l.Update(f.ctx, 1, func(tx ledger.Tx) error {
		if _, err := tx.NewUsers([]string{"a"}, at); err != nil {
			return err
		}
		if err := tx.PutProfiles([]ledger.Profile{{UserNo: 1, Props: []byte("{}"), Updated: at}}); err != nil {
			return err
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if st, _ := f.l.State(f.ctx, 1); st.Users != 0 || st.Seq != 0 || st.Profiles != 0 {
		t.Errorf("left behind: %+v", st)
	}
	f.users("b")
	if f.id("b").UserNo != 1 {
		t.Error("a number that was not committed is lost")
	}
}

func serial(t *testing.T, open Open) {
	f := begin(t, open)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				err := f.l.Update(f.ctx, 1, func(tx ledger.Tx) error {
					rows, err := tx.NewUsers([]string{fmt.Sprintf("%d-%d", i, j)}, at)
					if err != nil {
						return err
					}
					return tx.PutProfiles([]ledger.Profile{{UserNo: rows[0].UserNo, Props: []byte(`{"a":1}`), Updated: at}})
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if st, _ := f.l.State(f.ctx, 1); st.Users != 160 || st.Seq != 160 || st.Profiles != 160 {
		t.Errorf("%+v", st)
	}
}

func merge(t *testing.T, open Open) {
	f := begin(t, open)
	f.users("a", "b", "c")
	f.update(1, func(tx ledger.Tx) error {
		if err := tx.PutProfiles([]ledger.Profile{{UserNo: 2, Props: []byte(`{"x":1}`), Updated: at}}); err != nil {
			return err
		}
		if _, err := tx.AddAlias("c2", 3, ledger.Link{Reason: ledger.Alias, At: at, To: "c"}); err != nil {
			return err
		}
		if err := tx.Merge(3, 2, ledger.Link{Reason: ledger.MergeCall, At: at, To: "b"}); err != nil {
			return err
		}
		return tx.Merge(2, 1, ledger.Link{Reason: ledger.Identify, At: at.Add(time.Hour), To: "a"})
	})
	for id, want := range map[string]ledger.ID{
		"a": {UserNo: 1, Canonical: 1, Reason: ledger.FirstSeen}, "b": {UserNo: 2, Canonical: 1, Reason: ledger.Identify},
		"c": {UserNo: 3, Canonical: 1, Reason: ledger.MergeCall}, "c2": {UserNo: 3, Canonical: 1, Reason: ledger.Alias},
	} {
		got := f.id(id)
		if got.UserNo != want.UserNo || got.Canonical != want.Canonical || got.Reason != want.Reason {
			t.Errorf("%s: %+v", id, got)
		}
	}
	c, err := f.l.Cluster(f.ctx, 1, "c2", false)
	if err != nil || c == nil || c.User.No != 1 || c.User.IDs != 4 || len(c.IDs) != 4 || c.Identified {
		t.Errorf("cluster %+v, %v", c, err)
	}
	for _, id := range c.IDs {
		if want := map[string]string{"a": "", "b": "a", "c": "b", "c2": "c"}[id.DistinctID]; id.LinkedTo != want {
			t.Errorf("%s is linked to %q, want %q", id.DistinctID, id.LinkedTo, want)
		}
	}
	log, err := f.l.Merges(f.ctx, 1, 0, 100)
	if err != nil || len(log) != 3 || log[0].UserNo != 3 || log[0].Canonical != 2 || log[2].Canonical != 1 || log[2].AtMS != at.Add(time.Hour).UnixMilli() {
		t.Errorf("merges %+v, %v", log, err)
	}
	if rest, err := f.l.Merges(f.ctx, 1, log[0].Seq, log[1].Seq); err != nil || len(rest) != 1 || rest[0] != log[1] {
		t.Errorf("merges in between %+v, %v", rest, err)
	}
	for _, w := range []struct {
		before time.Time
		name   string
		nos    []uint64
	}{{at, "c", []uint64{3}}, {at.Add(time.Hour), "b", []uint64{2, 3}}, {at.Add(2 * time.Hour), "a", []uint64{1, 2, 3}}} {
		u, err := f.l.UserBefore(f.ctx, 1, "c2", w.before, false)
		if err != nil || u == nil {
			t.Fatalf("before %v: %v, %v", w.before, u, err)
		}
		slices.Sort(u.Nos)
		if u.DistinctID != w.name || !slices.Equal(u.Nos, w.nos) {
			t.Errorf("before %v: %+v, want %v", w.before, u, w)
		}
	}
	if u, err := f.l.UserBefore(f.ctx, 1, "nobody", at, true); u != nil || err != nil {
		t.Errorf("an unknown id before: %v, %v", u, err)
	}
	if c, err := f.l.Cluster(f.ctx, 1, "nobody", true); c != nil || err != nil {
		t.Errorf("cluster of an unknown id: %v, %v", c, err)
	}
	names, err := f.l.Names(f.ctx, 1, []uint64{1, 3})
	if err != nil || names[3] != (ledger.Name{Canonical: 1, DistinctID: "a", Own: "c"}) || names[1].Own != "a" {
		t.Errorf("names %v, %v", names, err)
	}
	st, _ := f.l.State(f.ctx, 1)
	changed, err := f.l.ChangedUsers(f.ctx, 1, 0)
	slices.Sort(changed)
	if err != nil || st.Users != 1 || st.Profiles != 0 || !slices.Equal(changed, []uint64{1, 2, 3}) {
		t.Errorf("state %+v, changed %v, %v", st, changed, err)
	}
	changes, err := f.l.Changes(f.ctx, 1, 0, 10)
	if err != nil || len(changes) != 3 || changes[2].UserNo != 1 || changes[2].Seq != st.Seq {
		t.Errorf("changes %+v, %v", changes, err)
	}
	for _, c := range changes {
		if c.Canonical != 1 || c.Props != nil {
			t.Errorf("change %+v", c)
		}
	}
}

func profiles(t *testing.T, open Open) {
	f := begin(t, open)
	f.users("a", "b", "c")
	put := func(no uint64, s string) {
		f.update(1, func(tx ledger.Tx) error {
			return tx.PutProfiles([]ledger.Profile{{UserNo: no, Props: []byte(s), Updated: at}})
		})
	}
	put(1, `{"v":1}`)
	put(2, `{"v":2}`)
	put(1, `{"v":3}`)
	if seq, err := f.l.Seq(f.ctx, 1); seq != 3 || err != nil {
		t.Errorf("sequence %d, %v", seq, err)
	}
	changes, _ := f.l.Changes(f.ctx, 1, 1, 10)
	if len(changes) != 2 || changes[0].UserNo != 2 || changes[1].UserNo != 1 || string(changes[1].Props) != `{"v":3}` {
		t.Errorf("changes after 1: %+v", changes)
	}
	if one, _ := f.l.Changes(f.ctx, 1, 1, 1); len(one) != 1 || one[0].Seq != 2 {
		t.Errorf("one change: %+v", one)
	}
	f.update(1, func(tx ledger.Tx) error {
		rows, err := tx.Profiles([]uint64{1, 2, 3})
		if err != nil || len(rows) != 2 || string(rows[1].Props) != `{"v":3}` || !rows[1].Updated.Equal(at) {
			t.Errorf("profiles in a transaction: %v, %v", rows, err)
		}
		return tx.DeleteProfiles([]uint64{1})
	})
	page, err := f.l.Profiles(f.ctx, 1, 0, 10)
	if err != nil || len(page) != 1 || page[0].UserNo != 2 || page[0].DistinctID != "b" {
		t.Errorf("page %+v, %v", page, err)
	}
	if page, _ := f.l.Profiles(f.ctx, 1, 2, 10); len(page) != 0 {
		t.Errorf("page after the last: %+v", page)
	}
	changes, _ = f.l.Changes(f.ctx, 1, 3, 10)
	if len(changes) != 1 || changes[0].UserNo != 1 || changes[0].Props != nil {
		t.Errorf("a deletion is the change %+v", changes)
	}
}

func reclassifications(t *testing.T, open Open) {
	f := begin(t, open)
	f.users("a")
	j := &ledger.Reclassification{ProjectID: 1, State: ledger.JobRunning, FromDay: 3, ToDay: 9, NextDay: 3, RulesVersion: 2, Total: 10, Created: at}
	if ok, err := f.l.CreateReclassification(f.ctx, j); !ok || err != nil || j.ID != 1 {
		t.Fatalf("%v, %v, %+v", ok, err, j)
	}
	if ok, err := f.l.CreateReclassification(f.ctx, &ledger.Reclassification{ProjectID: 1, State: ledger.JobRunning, Created: at}); ok || err != nil {
		t.Errorf("a second job beside a running one: %v, %v", ok, err)
	}
	if list, err := f.l.ListReclassifications(f.ctx, 0); err != nil || len(list) != 1 || list[0] != *j {
		t.Errorf("running jobs %+v, %v", list, err)
	}
	j.State, j.NextDay, j.Done, j.Changed, j.Error, j.Ended = ledger.JobFailed, 5, 7, 2, "why", at.Add(time.Hour)
	if err := f.l.PutReclassification(f.ctx, j); err != nil {
		t.Fatal(err)
	}
	if got, err := f.l.GetReclassification(f.ctx, 1, 1); err != nil || got == nil || *got != *j {
		t.Errorf("stored %+v, %v, want %+v", got, err, j)
	}
	if got, err := f.l.GetReclassification(f.ctx, 1, 2); got != nil || err != nil {
		t.Errorf("an unknown job: %v, %v", got, err)
	}
	next := &ledger.Reclassification{ProjectID: 1, State: ledger.JobRunning, Created: at}
	if ok, err := f.l.CreateReclassification(f.ctx, next); !ok || err != nil || next.ID != 2 {
		t.Errorf("after the first ended: %v, %v, %+v", ok, err, next)
	}
	if list, err := f.l.ListReclassifications(f.ctx, 1); err != nil || len(list) != 2 || list[0].ID != 2 {
		t.Errorf("jobs %+v, %v", list, err)
	}
	if ps, err := f.l.Projects(f.ctx); err != nil || len(ps) == 0 || ps[0] != 1 {
		t.Errorf("projects %v, %v", ps, err)
	}
}

func members(t *testing.T, open Open) {
	f := begin(t, open)
	ids := make([]string, 3000)
	for i := range ids {
		ids[i] = fmt.Sprint("u", i+1)
	}
	f.users(ids...)
	f.update(1, func(tx ledger.Tx) error {
		if err := tx.PutProfiles([]ledger.Profile{{UserNo: 2, Props: []byte(`{"a":1}`), Updated: at}}); err != nil {
			return err
		}
		return tx.Merge(7, 2, ledger.Link{Reason: ledger.DeviceLink, At: at})
	})
	for name, nos := range map[string][]uint64{"dense": {2, 4, 5, 6, 7}, "sparse": {2, 5, 6, 7, 2999, 9999}} {
		got, err := f.l.Members(f.ctx, 1, nos)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"u2", "u4", "u5", "u6"}
		if name == "sparse" {
			want = []string{"u2", "u5", "u6", "u2999"}
		}
		var have []string
		for _, m := range got {
			have = append(have, m.DistinctID)
			if (m.Props != nil) != (m.UserNo == 2) {
				t.Errorf("%s: %+v", name, m)
			}
		}
		if !slices.Equal(have, want) {
			t.Errorf("%s: %v, want %v", name, have, want)
		}
	}
	if got, err := f.l.Members(f.ctx, 1, nil); err != nil || len(got) != 0 {
		t.Errorf("nobody: %v, %v", got, err)
	}
}

func waiting(t *testing.T, open Open) {
	f := begin(t, open)
	f.users("a", "b", "c", "d")
	f.update(1, func(tx ledger.Tx) error {
		for _, c := range []struct {
			no       uint64
			property string
			value    string
		}{{3, "$p", "x"}, {2, "$p", "x"}, {2, "$q", "x"}, {1, "$p", "x"}, {1, "$p", "y"}, {3, "$p", ""}, {3, "$q", ""}} {
			if err := tx.SetConflict(c.no, c.property, c.value); err != nil {
				return err
			}
		}
		for value, want := range map[string][]ledger.Waiting{"x": {{UserNo: 2, Property: "$p"}, {UserNo: 2, Property: "$q"}}, "y": {{UserNo: 1, Property: "$p"}}, "z": nil, "": nil} {
			if got, err := tx.Waiting(value); err != nil || !slices.Equal(got, want) {
				t.Errorf("%q: %v, %v, want %v", value, got, err, want)
			}
		}
		if err := tx.DeleteProfiles([]uint64{1}); err != nil {
			return err
		}
		if err := tx.Merge(2, 4, ledger.Link{Reason: ledger.MergeCall, At: at}); err != nil {
			return err
		}
		for _, value := range []string{"x", "y"} {
			if got, err := tx.Waiting(value); err != nil || len(got) != 0 {
				t.Errorf("%q after a deletion and a merge: %v, %v", value, got, err)
			}
		}
		return nil
	})
}

func warnings(t *testing.T, open Open) {
	f := begin(t, open)
	for i, kind := range []string{"B", "A", "B"} {
		f.update(1, func(tx ledger.Tx) error { return tx.Warn(kind, at.Add(time.Duration(i)*time.Hour)) })
	}
	got, err := f.l.Warnings(f.ctx, 1)
	if err != nil || len(got) != 2 || got[0].Kind != "A" || got[1] != (ledger.Warning{Kind: "B", Count: 2, First: at, Last: at.Add(2 * time.Hour)}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func groups(t *testing.T, open Open) {
	f := begin(t, open)
	f.freeze(2)
	put := func(projectID int64, key, id, props string, at time.Time) {
		t.Helper()
		f.update(projectID, func(tx ledger.Tx) error {
			var b []byte
			if props != "" {
				b = []byte(props)
			}
			if err := tx.PutGroup(key, id, b, at); err != nil {
				return err
			}
			g, err := tx.Group(key, id) // it sees its own write
			if (g == nil) != (props == "") || g != nil && (string(g.Props) != props || g.Key != key || g.ID != id) {
				t.Errorf("%s of the transaction: %+v", id, g)
			}
			return err
		})
	}
	list := func(only, afterKey, afterID string, limit int) string {
		t.Helper()
		list, err := f.l.Groups(f.ctx, 1, only, afterKey, afterID, limit)
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, g := range list {
			out += g.Key + "/" + g.ID + string(g.Props) + " "
		}
		return out
	}
	put(1, "company", "acme", `{"a":1}`, at)
	put(1, "company", "acme", `{"a":2}`, at.Add(time.Hour))
	if g, err := f.l.Group(f.ctx, 1, "company", "acme"); err != nil || string(g.Props) != `{"a":2}` || !g.Updated.Equal(at.Add(time.Hour)) {
		t.Errorf("%+v, %v", g, err)
	}
	put(1, "team", "a", `{"t":1}`, at)
	put(1, "company", "zeta", `{}`, at)
	put(2, "company", "other", `{}`, at)
	for _, c := range []struct {
		only, afterKey, afterID string
		limit                   int
		want                    string
	}{
		{"", "", "", 10, `company/acme{"a":2} company/zeta{} team/a{"t":1} `},
		{"", "", "", 2, `company/acme{"a":2} company/zeta{} `},
		{"", "company", "acme", 10, `company/zeta{} team/a{"t":1} `},
		{"company", "company", "acme", 10, `company/zeta{} `},
		{"team", "", "", 10, `team/a{"t":1} `},
		{"none", "", "", 10, ``},
	} {
		if got := list(c.only, c.afterKey, c.afterID, c.limit); got != c.want {
			t.Errorf("only %q after %q/%q: %s, want %s", c.only, c.afterKey, c.afterID, got, c.want)
		}
	}
	put(1, "company", "acme", "", at)
	if g, err := f.l.Group(f.ctx, 1, "company", "acme"); err != nil || g != nil {
		t.Errorf("after a deletion: %+v, %v", g, err)
	}
}

func apart(t *testing.T, open Open) {
	f := begin(t, open)
	f.freeze(2)
	f.users("a")
	f.update(2, func(tx ledger.Tx) error {
		rows, err := tx.NewUsers([]string{"x", "a"}, at)
		if err == nil && rows[1].UserNo != 2 {
			t.Errorf("numbers are shared between projects: %+v", rows)
		}
		return err
	})
	if f.id("a").UserNo != 1 || f.id("x").UserNo != 0 {
		t.Error("ids are shared between projects")
	}
}

func reopen(t *testing.T, open Open) {
	dir := t.TempDir()
	f := &fixture{T: t, l: open(t, dir), ctx: context.Background()}
	f.freeze(1)
	f.users("a")
	if err := f.l.Close(); err != nil {
		t.Fatal(err)
	}
	f.l = open(t, dir)
	defer func() {
		if err := f.l.Close(); err != nil {
			t.Error(err)
		}
	}()
	f.users("b")
	if f.id("a").UserNo != 1 || f.id("b").UserNo != 2 {
		t.Errorf("a %+v, b %+v", f.id("a"), f.id("b"))
	}
}

func repoint(t *testing.T, open Open) {
	f := begin(t, open)
	f.users("a", "b")
	f.update(1, func(tx ledger.Tx) error { return tx.Repoint("b", 1, ledger.Link{Reason: ledger.Alias, At: at}) })
	if id := f.id("b"); id.UserNo != 1 || id.Reason != ledger.Alias {
		t.Errorf("%+v", id)
	}
	if changed, _ := f.l.ChangedUsers(f.ctx, 1, 0); len(changed) != 2 {
		t.Errorf("changed %v", changed)
	}
	if c, _ := f.l.Cluster(f.ctx, 1, "a", true); c.User.IDs != 2 || len(c.IDs) != 2 {
		t.Errorf("cluster %+v", c)
	}
	if names, _ := f.l.Names(f.ctx, 1, []uint64{2}); names[2].DistinctID != "b" {
		t.Errorf("earlier events moved: %v", names)
	}
	// The user who had the id is still found by it.
	for id, want := range map[string]uint64{"a": 0, "b": 2, "nobody": 0} {
		if no, err := f.l.Former(f.ctx, 1, id); no != want || err != nil {
			t.Errorf("former user of %s: %d, %v", id, no, err)
		}
	}
	for literal, want := range map[bool]uint64{false: 1, true: 2} {
		c, err := f.l.Cluster(f.ctx, 1, "b", literal)
		if err != nil || c.User.No != want || len(c.IDs) != int(4-2*want) || want == 1 && c.IDs[1].Former != 2 {
			t.Errorf("cluster of b, literally %v: %+v, %v", literal, c, err)
		}
		if u, err := f.l.UserBefore(f.ctx, 1, "b", at, literal); err != nil || u.Canonical != want || len(u.Nos) != 1 {
			t.Errorf("user of b, literally %v: %+v, %v", literal, u, err)
		}
	}
	if m, err := f.l.Members(f.ctx, 1, []uint64{1, 2}); err != nil || len(m) != 2 || m[0].Taken || !m[1].Taken {
		t.Errorf("members %+v, %v", m, err)
	}
	// An id that was merged away before it moves leaves no user behind.
	f.users("c")
	f.update(1, func(tx ledger.Tx) error {
		if err := tx.Merge(3, 2, ledger.Link{Reason: ledger.PartnerAlias, At: at}); err != nil {
			return err
		}
		if err := tx.Repoint("c", 1, ledger.Link{Reason: ledger.PartnerAlias, At: at}); err != nil {
			return err
		}
		if no, err := tx.Former("c"); no != 0 || err != nil {
			t.Errorf("former user of c: %d, %v", no, err)
		}
		return nil
	})
}
