package idlist_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/idlist"
)

func read(csv string) (ids []string, numbers []int64, err error) {
	_, err = idlist.Read(strings.NewReader(csv), func(lines []idlist.Line) error {
		for _, l := range lines {
			ids, numbers = append(ids, l.ID), append(numbers, l.Number)
		}
		return nil
	})
	return ids, numbers, err
}

func TestIDsAreReadFromTheNamedColumn(t *testing.T) {
	for what, c := range map[string]struct {
		csv     string
		ids     []string
		numbers []int64
	}{
		"one column":             {"distinct_id\na\nb\n", []string{"a", "b"}, []int64{2, 3}},
		"Mixpanel's name, BOM":   {"\ufeff$distinct_id,marker\r\na,x\r\nb,\r\n", []string{"a", "b"}, []int64{2, 3}},
		"second column, no end":  {"name, Distinct_ID\nAnn,a\nBob,b", []string{"a", "b"}, []int64{2, 3}},
		"quotes and commas":      {"distinct_id\n\"a,\"\"1\"\"\"\n\"b\nc\"\nd", []string{`a,"1"`, "b\nc", "d"}, []int64{2, 3, 5}},
		"lines that lack it":     {"x,distinct_id\n1\n\n1,a\n", []string{"", "a"}, []int64{2, 4}},
		"spaces belong to an id": {"distinct_id\n a \n", []string{" a "}, []int64{2}},
		"no ids":                 {"distinct_id\n", nil, nil},
	} {
		ids, numbers, err := read(c.csv)
		require.NoError(t, err, what)
		require.Equal(t, c.ids, ids, what)
		require.Equal(t, c.numbers, numbers, what)
	}
}

func TestACSVThatCantBeReadIsRefusedByLine(t *testing.T) {
	for csv, want := range map[string]string{
		"":                                 "is empty",
		"\ufeff":                           "is empty",
		"user\na\n":                        "line 1 must name",
		"a\nb\n":                           "line 1 must name",
		"distinct_id\na\"b\n":              "line 2, column",
		"distinct_id\n\"never closed\na\n": "line 3, column",
		"distinct_id\n\"" + strings.Repeat("x\n", 1<<20): "64 KB",
		strings.Repeat("x", 1<<20):                       "64 KB",
	} {
		_, _, err := read(csv)
		require.True(t, fault.Is(err, fault.Invalid), "%.40q: %v", csv, err)
		require.ErrorContains(t, err, want)
	}
	broken := errors.New("connection reset")
	_, err := idlist.Read(io.MultiReader(strings.NewReader("distinct_id\na\n"), &failing{broken}), func([]idlist.Line) error { return nil })
	require.ErrorIs(t, err, broken)
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
