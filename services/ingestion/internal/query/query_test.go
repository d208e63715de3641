package query_test

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/query"
)

var owner = query.Owner{Project: 1, Caller: "a"}

func one() *query.Selection { return &query.Selection{Users: []uint64{1}, PageSize: 10} }

func TestASelectionIsItsOwnersAndLivesFor30MinutesAfterItWasRead(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := query.NewSelections(func() time.Time { return now })
	id := s.Put(owner, one())
	for _, other := range []query.Owner{{Project: 2, Caller: "a"}, {Project: 1, Caller: "b"}} {
		if _, err := s.Get(other, id); fault.As(err) == nil || fault.As(err).Reason != "SESSION_EXPIRED" {
			t.Errorf("%+v reads it: %v", other, err)
		}
	}
	for range 3 { // each reading prolongs it
		now = now.Add(query.Life)
		if sel, err := s.Get(owner, id); err != nil || sel.Total() != 1 {
			t.Fatalf("within its life: %v", err)
		}
	}
	now = now.Add(query.Life + time.Second)
	if _, err := s.Get(owner, id); !fault.Is(err, fault.Invalid) {
		t.Errorf("after its life: %v", err)
	}
}

func TestTheStoreIsBoundedAndForgetsWhatWasReadLongestAgo(t *testing.T) {
	s := query.NewSelections(time.Now)
	first, second := s.Put(owner, one()), s.Put(owner, one())
	for range query.MaxSelections - 2 {
		s.Put(owner, one())
	}
	if _, err := s.Get(owner, first); err != nil {
		t.Fatalf("full, but not over: %v", err)
	}
	s.Put(owner, one())
	if _, err := s.Get(owner, second); err == nil {
		t.Error("the one read longest ago is still there")
	}
	if _, err := s.Get(owner, first); err != nil {
		t.Errorf("one that was read is gone: %v", err)
	}
	big := s.Put(owner, &query.Selection{Users: make([]uint64, query.MaxBytes/8+1), PageSize: 10})
	if _, err := s.Get(owner, big); err != nil {
		t.Errorf("a large one can't be read: %v", err)
	}
	if _, err := s.Get(owner, first); err == nil {
		t.Error("more than the bytes allowed are kept")
	}
	groups := &query.Selection{GroupKey: "company", PageSize: 10}
	for i := range 200_000 {
		groups.Groups = append(groups.Groups, strconv.Itoa(i)+"-"+string(make([]byte, 400)))
	}
	s.Put(owner, groups)
	if _, err := s.Get(owner, big); err == nil {
		t.Error("the length of group ids is not counted")
	}
}

func TestPagesCoverASelectionOnceAndEndEmpty(t *testing.T) {
	for total := range 25 {
		sel := &query.Selection{Users: make([]uint64, total), PageSize: 5}
		var got []int
		for n := range 7 {
			from, to := sel.Page(n)
			for i := from; i < to; i++ {
				got = append(got, i)
			}
			if n > total/5 && from != to {
				t.Errorf("page %d of %d is not empty", n, total)
			}
		}
		if len(got) != total || !slices.IsSorted(got) {
			t.Errorf("pages of %d hold %v", total, got)
		}
	}
	sel := &query.Selection{Users: make([]uint64, 5), PageSize: 5}
	if from, to := sel.Page(1 << 31); from != to {
		t.Error("a page far beyond the end is not empty")
	}
}
