package duck_test

import (
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
)

// FuzzParseTime proves that a text that is a time reads back as the same instant
// in every form it can be written in.
func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2026-03-31", "2026-03-31T12:00:00", "2026-03-31 12:00:00.5", "2026-03-31T12:00:00Z", "2026-03-31T12:00:00.123456789+05:30", "2026-02-30", "0000-01-01", "9999-12-31T23:59:59.999Z", "2026-03-31T24:00:00", "2026-03-31x", "２026-03-31", "2026-03-31T12:00:00,5", "-026-03-31"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ms, ok := duck.ParseTime(s)
		if !ok {
			return
		}
		at := time.UnixMilli(ms).UTC()
		if at.Year() < -1 || at.Year() > 10_000 || s[4] != '-' {
			t.Fatalf("%q is %v", s, at)
		}
		if at.Year() < 0 || at.Year() > 9999 { // a zone may lead out of the years that can be written
			return
		}
		for _, layout := range []string{"2006-01-02T15:04:05.000Z07:00", "2006-01-02T15:04:05.000", "2006-01-02 15:04:05.000"} {
			if again, ok := duck.ParseTime(at.Format(layout)); !ok || again != ms {
				t.Fatalf("%q is %d, written %q it is %d", s, ms, at.Format(layout), again)
			}
		}
	})
}
