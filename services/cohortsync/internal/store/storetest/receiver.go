package storetest

import (
	"fmt"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

func (s suite) externalCohort(source, name string) store.Cohort {
	s.Helper()
	c, err := s.st.ExternalCohort(s.ctx, 1, source, store.Cohort{DisplayName: name}, false, now)
	require.NoError(s, err)
	return c
}

func external(s suite) {
	s.cohort("Taken")
	a := s.externalCohort("7/42", "Lapsed")
	require.IsType(s, &typev1.Expression_External{}, a.Definition.GetNode())
	require.Equal(s, a.ID, s.externalCohort("7/42", "Lapsed").ID)
	require.Equal(s, a.Revision, s.externalCohort("7/42", "Lapsed").Revision, "nothing changed")
	renamed := s.externalCohort("7/42", "Gone")
	require.Equal(s, a.ID, renamed.ID)
	require.Equal(s, "Gone", renamed.DisplayName)
	require.Equal(s, "Taken (7/42)", s.externalCohort("7/42", "Taken").DisplayName)
	require.NotEqual(s, a.ID, s.externalCohort("7/43", "Gone").ID, "another source is another cohort")
	other, err := s.st.ExternalCohort(s.ctx, 2, "7/42", store.Cohort{DisplayName: "Lapsed"}, false, now)
	require.NoError(s, err)
	require.NotEqual(s, a.ID, other.ID)

	require.NoError(s, s.st.DeleteCohort(s.ctx, 1, a.ID))
	_, err = s.st.ExternalCohort(s.ctx, 1, "7/42", store.Cohort{DisplayName: "Lapsed"}, false, now)
	require.True(s, fault.Is(err, fault.NotFound), "who is in it is not known: %v", err)
	again, err := s.st.ExternalCohort(s.ctx, 1, "7/42", store.Cohort{DisplayName: "Lapsed"}, true, now)
	require.NoError(s, err)
	require.NotEqual(s, a.ID, again.ID)
}

// say adds a page and returns who is in the cohort then.
func (s suite) say(c store.Cohort, minute int, session string, action store.ExternalAction, page, of int, users ...uint64) (string, error) {
	s.Helper()
	p, err := s.st.AddPage(s.ctx, 1, store.ExternalPage{Cohort: c.ID, Session: session, Action: action, Page: page, Pages: of, Users: roaring64.BitmapOf(users...)}, now.Add(time.Duration(minute)*time.Minute))
	m, merr := s.st.CohortMembers(s.ctx, 1, c.ID)
	require.NoError(s, merr)
	if err == nil {
		require.EqualValues(s, m.Users.GetCardinality(), p.Total)
	}
	return fmt.Sprint(m.Users.ToArray()), err
}

func (s suite) in(want string) func(string, error) {
	return func(got string, err error) {
		s.Helper()
		require.NoError(s, err)
		require.Equal(s, want, got)
	}
}

const (
	all = store.ExternalReplace
	add = store.ExternalAdd
	rem = store.ExternalRemove
)

func pages(s suite) {
	c := s.externalCohort("7/42", "x")
	s.in("[]")(s.say(c, 0, "a", all, 2, 3, 4))
	s.in("[]")(s.say(c, 0, "a", all, 2, 3, 4)) // again
	s.in("[]")(s.say(c, 0, "a", all, 3, 3, 5))
	s.in("[1 4 5]")(s.say(c, 1, "a", all, 1, 3, 1))
	s.in("[1 4 5]")(s.say(c, 1, "a", all, 1, 3, 9)) // a page of a finished session changes nothing
	s.in("[1 4 5 6]")(s.say(c, 2, "b", add, 1, 1, 6))
	s.in("[4 5 6]")(s.say(c, 2, "b", rem, 1, 1, 1))
	s.in("[4 5 6]")(s.say(c, 3, "c", add, 1, 1)) // no change
	s.in("[4 5 6]")(s.say(c, 3, "c", rem, 1, 1))
	s.in("[2]")(s.say(c, 4, "d", all, 1, 1, 2))
	_, err := s.say(c, 5, "e", add, 1, 2, 3)
	require.NoError(s, err)
	_, err = s.say(c, 5, "e", add, 2, 3, 3)
	require.True(s, fault.Is(err, fault.Invalid), "another number of pages: %v", err)
	_, err = s.st.AddPage(s.ctx, 2, store.ExternalPage{Cohort: c.ID, Session: "f", Action: add, Page: 1, Pages: 1, Users: roaring64.New()}, now)
	require.True(s, fault.Is(err, fault.NotFound), "another project's: %v", err)
}

func abandoned(s suite) {
	c := s.externalCohort("7/42", "x")
	s.in("[1 2]")(s.say(c, 0, "a", add, 1, 1, 1, 2)) // a first session may have additions only
	s.in("[1 2]")(s.say(c, 1, "b", add, 1, 2, 3))    // half of it
	s.in("[1 2 4]")(s.say(c, 2, "c", add, 1, 1, 4))
	s.in("[2 4]")(s.say(c, 2, "c", rem, 1, 1, 1))
	_, err := s.say(c, 3, "b", add, 2, 2, 5)
	require.True(s, fault.Is(err, fault.Conflict), "a page of the one that was overtaken: %v", err)

	// Of d the additions came, and not the removals: e starts from before it, as the sender does.
	s.in("[2 4 6]")(s.say(c, 4, "d", add, 1, 1, 6))
	s.in("[2 4 7]")(s.say(c, 5, "e", add, 1, 1, 7))
	s.in("[4 7]")(s.say(c, 5, "e", rem, 1, 1, 2))
	// The same with removals that came in part.
	s.in("[4 7 8]")(s.say(c, 6, "f", add, 1, 1, 8))
	s.in("[4 7 8]")(s.say(c, 6, "f", rem, 1, 2, 4))
	s.in("[7]")(s.say(c, 7, "g", rem, 1, 1, 4))
	s.in("[7 9]")(s.say(c, 7, "g", add, 1, 1, 9))
	// Everybody anew needs nothing of what was.
	s.in("[7 9 10]")(s.say(c, 8, "h", add, 1, 1, 10))
	s.in("[3]")(s.say(c, 9, "i", all, 1, 1, 3))
	s.in("[3 5]")(s.say(c, 10, "j", add, 1, 1, 5))
	s.in("[5]")(s.say(c, 10, "j", rem, 1, 1, 3))

	// What is half there is forgotten in the end.
	s.in("[5]")(s.say(c, 11, "k", add, 1, 2, 6))
	late := 11 + int(store.KeptSessions/time.Minute) + 1
	s.in("[5]")(s.say(c, late, "k", add, 2, 2, 7))
}
