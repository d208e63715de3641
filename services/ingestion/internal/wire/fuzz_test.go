package wire_test

import (
	"errors"
	"testing"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// FuzzOpen proves that a request is opened within its limits or refused with a
// status, and that a callback never carries anything but a name.
func FuzzOpen(f *testing.F) {
	f.Add("data=eyJhIjoxfQ==&verbose=1", "callback=a.b[0]", "application/x-www-form-urlencoded", "", "POST")
	f.Add("[1]", "strict=1", "application/json", "gzip", "POST")
	f.Add("\x1f\x8b\x08\x00", "", "", "gzip", "GET")
	f.Add("data=a b/c", "data=%7b%7d&img=1", "text/plain", "identity", "GET")
	f.Fuzz(func(t *testing.T, body, query, contentType, encoding, method string) {
		lim := wire.Limits{Body: 4096, Decompressed: 8192}
		p, err := wire.Open(&wire.Request{Endpoint: wire.Track, Method: method, ContentType: contentType, ContentEncoding: encoding, RawQuery: query, Body: []byte(body)}, lim)
		defer p.Release()
		if r, ok := errors.AsType[*wire.Refusal](err); err != nil && (!ok || r.Status < 400 || r.Status > 499) {
			t.Fatalf("refused with %v", err)
		}
		if len(p.JSON) > lim.Decompressed+len(query) {
			t.Fatalf("%d bytes of data", len(p.JSON))
		}
		for _, c := range p.Params.Callback {
			if c == '<' || c == '(' || c == '/' || c == '"' {
				t.Fatalf("callback %q", p.Params.Callback)
			}
		}
		wire.Simple(&p.Params, true, "")
	})
}
