package profile_test

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
)

// FuzzApply proves that whatever updates do to a profile, it is stored as JSON
// that reads back as the same profile.
func FuzzApply(f *testing.F) {
	for _, s := range []string{
		`{"$distinct_id":"u","$set":{"a":1,"b":[1,"x"]}}`, `{"$distinct_id":"u","$add":{"a":1e308},"$append":{"b":{"c":[]}}}`,
		`{"$distinct_id":"u","$union":{"b":["\ud83d",2.0]},"$remove":{"b":1},"$unset":["a"]}`, `{"$distinct_id":1,"$delete":0}`, `{"$distinct_id":"u","$set":{"":null}}`,
	} {
		f.Add([]byte(s), []byte(`{"$distinct_id":"u","$union":{"a":[1]},"$add":{"a":9223372036854775807}}`))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		p := profile.Properties{}
		for _, b := range [][]byte{first, second} {
			u, fail := profile.DecodeOne(b, 0)
			if fail != nil || u.Delete {
				continue
			}
			u.Apply(p, time.Unix(0, 0))
			out := p.JSON()
			if !jsontext.Value(out).IsValid() {
				t.Fatalf("not JSON: %q", out)
			}
			again, err := profile.Parse(out)
			if err != nil || string(again.JSON()) != string(out) {
				t.Fatalf("%q reads back as %q, %v", out, again.JSON(), err)
			}
		}
	})
}
