package resource_test

import (
	"encoding/base64"
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
)

func TestAPairTokenReadsBackAsItsTwoTexts(t *testing.T) {
	for _, pair := range [][2]string{{"a", "b"}, {"", "b"}, {"a", ""}, {"a:1", "2:b"}, {"12:", "é/\x00"}} {
		a, b, err := resource.PairToken(resource.NextPair(pair[0], pair[1]))
		if err != nil || a != pair[0] || b != pair[1] {
			t.Errorf("%q became %q, %q, %v", pair, a, b, err)
		}
	}
	if a, b, err := resource.PairToken(""); a != "" || b != "" || err != nil {
		t.Errorf("the first page: %q, %q, %v", a, b, err)
	}
}

func TestATokenOfNobodysIsRefusedByName(t *testing.T) {
	for _, raw := range []string{"", "5", "x:ab", "-1:ab", "3:ab", "99999999999999999999:a"} {
		_, _, err := resource.PairToken("A" + base64.RawURLEncoding.EncodeToString([]byte(raw)))
		_, _, again := resource.PairToken(base64.RawURLEncoding.EncodeToString([]byte(raw)))
		if f := fault.As(err); f == nil || f.Code != fault.Invalid || f.Violations[0].Field != "page_token" {
			t.Errorf("%q with a letter before it: %v", raw, err)
		}
		if raw != "" && !fault.Is(again, fault.Invalid) {
			t.Errorf("%q: %v", raw, again)
		}
	}
}
