package duck_test

import (
	"database/sql"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
)

// asEvent reads a text as a time as an event's filter does.
func asEvent(t testing.TB, db *sql.DB, s string) (ms int64, ok bool) {
	t.Helper()
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	var v sql.NullInt64
	if err := db.QueryRowContext(t.Context(), "SELECT "+duck.When("$1::JSON"), string(b)).Scan(&v); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return v.Int64, v.Valid
}

func inMemory(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("duckdb", "")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.ExecContext(t.Context(), "SET TimeZone='UTC'"); err != nil {
		t.Fatal(err)
	}
	return db
}

var timeTexts = []string{
	"2026-03-31", "2026-03-31T10:00", "2026-03-31 10:00", "2026-03-31T10:00:00", "2026-03-31 10:00:00.5", "2026-03-31T10:00:00Z", "2026-03-31 10:00:00Z", "2026-03-31 10:00:00+02", "2026-03-31T10:00:00+02:00",
	"2026-03-31 10:00:00-0530", "2026-03-31T10:00:00.123456789+05:30", "2026-03-31T10:00:00.9999Z", "1969-12-31T23:59:59.9995", "0001-01-01", "9999-12-31T23:59:59.999Z", "2024-02-29",
	"2026-02-30", "2026-13-01", "2026-00-10", "2026-03-31T24:00:00", "2026-03-31T10:60:00", "2026-03-31T10:00:60Z", "2026-03-31T10:00:00,5", "2026-03-31x", "2026-03-31 ", " 2026-03-31", "2026-03-31 (BC)", "2026-03-31 10:00:00 UTC", "2026-03-31T1:00:00", "2026-03-31T10:00:00.Z",
	"0000-01-01", "2026-03-31T10:00:00+24:00", "2026-03-31T10:00+02", "2026-3-1", "20260331", "10000-01-01", "２026-03-31", "",
}

// TestEventsAndProfilesReadTheSameTextsAsTimes: a filter means the same on both.
func TestEventsAndProfilesReadTheSameTextsAsTimes(t *testing.T) {
	db := inMemory(t)
	times := 0
	for _, s := range timeTexts {
		ms, ok := duck.ParseTime(s)
		if ms2, ok2 := asEvent(t, db, s); ok != ok2 || ms != ms2 {
			t.Errorf("%q is %d %v on a profile, %d %v on an event", s, ms, ok, ms2, ok2)
		}
		if ok {
			times++
		}
	}
	if times < 16 {
		t.Errorf("%d texts are times, want the first 16", times)
	}
}

// FuzzParseTime proves that a text is the same instant, or none, on a profile and
// on an event, and in every form it can be written in.
func FuzzParseTime(f *testing.F) {
	for _, s := range timeTexts {
		f.Add(s)
	}
	db := inMemory(f)
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return // no text of a property
		}
		ms, ok := duck.ParseTime(s)
		if ms2, ok2 := asEvent(t, db, s); ok != ok2 || ms != ms2 {
			t.Fatalf("%q is %d %v on a profile, %d %v on an event", s, ms, ok, ms2, ok2)
		}
		at := time.UnixMilli(ms).UTC()
		if !ok || at.Year() < 1 || at.Year() > 9999 { // a zone may lead out of the years that can be written
			return
		}
		for _, layout := range []string{"2006-01-02T15:04:05.000Z07:00", "2006-01-02T15:04:05.000", "2006-01-02 15:04:05.000"} {
			if again, ok := duck.ParseTime(at.Format(layout)); !ok || again != ms {
				t.Fatalf("%q is %d, written %q it is %d", s, ms, at.Format(layout), again)
			}
		}
	})
}
