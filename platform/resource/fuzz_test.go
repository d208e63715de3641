package resource_test

import (
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
)

// FuzzPageToken proves that a token is taken only in the form NextPage writes it,
// and that the error does not repeat it.
func FuzzPageToken(f *testing.F) {
	for _, s := range []string{"", "1", "0", "-1", "+5", "007", "-0", "9223372036854775807", "9223372036854775808", "1e3", "0x10", " 1", "1\n", "٣", "zoe@example.org"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, err := resource.PageToken(token)
		switch {
		case err != nil:
			text := err.Error() // says the same of every token
			if _, other := resource.PageToken("no token"); !fault.Is(err, fault.Invalid) || text != other.Error() {
				t.Fatalf("%q: %v", token, err)
			}
		case token == "" && id == 0:
		default:
			list, again := resource.NextPage([]int64{id, id + 1}, 1, func(i int64) int64 { return i })
			if again != token || len(list) != 1 {
				t.Fatalf("%q is taken as %q", token, again)
			}
		}
	})
}

// FuzzIDs proves that a resource name is taken only in the form Name writes it.
func FuzzIDs(f *testing.F) {
	for _, s := range []string{"projects/7/connectors/3", "projects/7", "projects/+7/connectors/3", "projects/07/connectors/3", "projects/-1/connectors/3", "projects//connectors/3", "/projects/7/connectors/3/", "projects/7/connectors/9223372036854775808"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ids, err := resource.IDs("name", name, "projects", "connectors")
		if err != nil {
			if !fault.Is(err, fault.Invalid) || ids != nil {
				t.Fatalf("%q: %v, %v", name, ids, err)
			}
			return
		}
		if again := resource.Name("projects", ids[0], "connectors", ids[1]); again != name {
			t.Fatalf("%q is taken as %q", name, again)
		}
	})
}
