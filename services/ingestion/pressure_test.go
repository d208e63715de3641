package ingestion_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

// held is a registry that keeps its callers waiting while it is shut.
type held struct {
	ingestion.Registry
	asked chan struct{}
	shut  chan struct{}
}

func (r *held) Authenticate(ctx context.Context, c ingestion.Credential) (*ingestion.Project, error) {
	r.asked <- struct{}{}
	<-r.shut
	return r.Registry.Authenticate(ctx, c)
}

// wantBusy wants a 429 that says who is at the limit.
func wantBusy(t *testing.T, what, who string, r *ingestionv1.IngestRawResponse) {
	t.Helper()
	if !strings.Contains(string(r.GetBody()), who) {
		t.Errorf("%s: answered %s, which does not say %q", what, r.GetBody(), who)
	}
	if r.GetStatus() != 429 || r.GetHeaders()["Retry-After"] == "" || !strings.HasPrefix(string(r.GetBody()), `{"code":429,"error":"`) || !strings.HasSuffix(string(r.GetBody()), `"status":"Too Many Requests"}`) {
		t.Errorf("%s: answered %d %v %s, want 429 in the form of /import", what, r.GetStatus(), r.GetHeaders(), r.GetBody())
	}
}

func TestMoreWorkThanFitsIsRefusedAndTakenWhenThereIsRoom(t *testing.T) {
	event := func(pad int) []byte {
		return toJSON(t, []props{ev("E", start, "u", "", props{"token": "tok-1", "pad": strings.Repeat("x", pad)})})
	}
	zipped := func(pad int) *ingestionv1.IngestRawRequest {
		return &ingestionv1.IngestRawRequest{Endpoint: track, Method: "POST", ContentType: "application/json", ContentEncoding: "gzip", Body: gz(t, event(pad))}
	}
	plain := func(pad int) *ingestionv1.IngestRawRequest {
		return &ingestionv1.IngestRawRequest{Endpoint: track, Method: "POST", ContentType: "application/json", Body: event(pad)}
	}
	lying := zipped(200_000)
	for i := 1; i <= 4; i++ {
		lying.Body[len(lying.Body)-i] = 0 // announces 0 bytes
	}
	for _, c := range []struct {
		name        string
		set         func(*ingestion.Config)
		holder      int // bytes of the request that is being worked on
		fits, tight *ingestionv1.IngestRawRequest
	}{
		{"requests", func(c *ingestion.Config) { c.MaxConcurrent = 1 }, 10, nil, plain(1)},
		{"bytes as sent", func(c *ingestion.Config) { c.MaxInFlightBytes = 100_000 }, 50_000, plain(40_000), plain(60_000)},
		{"bytes decompressed", func(c *ingestion.Config) { c.MaxInFlightBytes = 100_000 }, 50_000, zipped(40_000), zipped(60_000)},
		{"bytes decompressed beyond what was announced", func(c *ingestion.Config) { c.MaxInFlightBytes = 100_000 }, 50_000, nil, lying},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := ingestion.Default()
			cfg.DataDir = t.TempDir()
			c.set(&cfg)
			reg := &held{newRegistry(), make(chan struct{}), make(chan struct{})}
			svc, err := ingestion.New(context.Background(), cfg, reg, ingestion.WithClock(func() time.Time { return start }))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := svc.Close(context.Background()); err != nil {
					t.Error(err)
				}
			}()
			in := benchkit.HandlersOf(svc).Ingestion
			send := func(req *ingestionv1.IngestRawRequest) *ingestionv1.IngestRawResponse {
				r, err := in.IngestRaw(context.Background(), req)
				if err != nil {
					t.Error(err)
				}
				return r
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				req := plain(c.holder)
				req.Endpoint, req.Authorization, req.RawQuery = imports, basic("secret-1", ""), "strict=0"
				if r := send(req); r.GetStatus() != 200 {
					t.Errorf("the request that was taken answered %d %s", r.GetStatus(), r.GetBody())
				}
			})
			<-reg.asked // it is being worked on
			if c.fits != nil {
				if r := send(c.fits); string(r.GetBody()) != "1" {
					t.Errorf("what fits beside it answered %d %s", r.GetStatus(), r.GetBody())
				}
			}
			wantBusy(t, "what does not fit", "server is busy", send(c.tight))
			_, err = in.ImportEvents(context.Background(), &ingestionv1.ImportEventsRequest{Parent: "projects/1", Events: []*ingestionv1.Event{typed(strings.Repeat("E", 60_000), start, "u", "i")}})
			if f := fault.As(err); f == nil || f.Code != fault.Exhausted || f.RetryAfter <= 0 {
				t.Errorf("a typed import answered %v", err)
			}
			close(reg.shut)
			wg.Wait()
			// With room again it is judged by its own merits. (The lie is found, the event lost.)
			if r := send(c.tight); (string(r.GetBody()) != "1") != (c.tight == lying) || r.GetStatus() == 429 {
				t.Errorf("with room again: %d %s", r.GetStatus(), r.GetBody())
			}
		})
	}
}

func TestAProjectsRateIsARollingMinute(t *testing.T) {
	batch := func(n int, tokens ...string) []byte {
		var list []props
		for i := range n {
			list = append(list, ev("E", start, "u", "", props{"token": tokens[i%len(tokens)]}))
		}
		return toJSON(t, list)
	}
	open := func(t *testing.T, events, size int64) *harness {
		h := newHarness(t)
		h.close()
		h.cfg.ProjectEventsPerMinute, h.cfg.ProjectBytesPerMinute = events, size
		h.open()
		return h
	}
	send := func(h *harness, body []byte) *ingestionv1.IngestRawResponse {
		return h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: body})
	}
	imp := func(h *harness, query string, body []byte) *ingestionv1.IngestRawResponse {
		return h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: query, Authorization: basic("secret-1", ""), ContentType: "application/json", Body: body})
	}
	good := func(t *testing.T, r *ingestionv1.IngestRawResponse) {
		t.Helper()
		if r.GetStatus() != 200 || string(r.GetBody()) == "0" {
			t.Errorf("answered %d %s", r.GetStatus(), r.GetBody())
		}
	}
	after := func(t *testing.T, r *ingestionv1.IngestRawResponse, seconds string) {
		t.Helper()
		wantBusy(t, "over the rate", "Project exceeded rate limits", r)
		if got := r.GetHeaders()["Retry-After"]; got != seconds {
			t.Errorf("come back after %s s, want %s", got, seconds)
		}
	}

	t.Run("events", func(t *testing.T) {
		h := open(t, 100, 0)
		good(t, send(h, batch(60, "tok-1")))
		h.tick(20 * time.Second)
		good(t, imp(h, "strict=0", batch(40, "tok-1")))
		after(t, send(h, batch(1, "tok-1")), "40")
		after(t, imp(h, "strict=1", batch(61, "tok-1")), "60") // the second batch must leave as well
		after(t, imp(h, "verbose=1", batch(1, "tok-1")), "40")
		good(t, send(h, batch(100, "tok-2"))) // another project's
		h.tick(40 * time.Second)
		good(t, send(h, batch(60, "tok-1")))
		after(t, send(h, batch(1, "tok-1")), "20")
		if n := len(h.export(1)); n != 160 {
			t.Errorf("%d events stored, want those of the batches taken: 160", n)
		}
	})
	t.Run("bytes of uncompressed JSON", func(t *testing.T) {
		body := batch(50, "tok-1")
		h := open(t, 0, int64(len(body))+10)
		good(t, h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=0", Authorization: basic("secret-1", ""), ContentType: "application/json", ContentEncoding: "gzip", Body: gz(t, body)}))
		after(t, send(h, batch(1, "tok-1")), "60")
		h.tick(time.Minute)
		good(t, send(h, batch(1, "tok-1")))
	})
	t.Run("events that fail count too", func(t *testing.T) {
		h := open(t, 10, 0)
		if r := imp(h, "strict=1", []byte("["+strings.TrimSuffix(strings.Repeat(`{},`, 10), ",")+"]")); r.GetStatus() != 400 {
			t.Fatalf("answered %d", r.GetStatus())
		}
		after(t, imp(h, "strict=1", batch(1, "tok-1")), "60")
	})
	t.Run("a batch of two projects is taken whole or not", func(t *testing.T) {
		h := open(t, 10, 0)
		good(t, send(h, batch(10, "tok-1")))
		after(t, send(h, batch(2, "tok-2", "tok-1")), "60")
		if n := len(h.export(2)); n != 0 {
			t.Errorf("%d events of the other project stored", n)
		}
		good(t, send(h, batch(10, "tok-2")))
	})
	t.Run("a batch that can never fit is told the limit", func(t *testing.T) {
		tooLarge := func(t *testing.T, r *ingestionv1.IngestRawResponse, limit string) {
			t.Helper()
			want := fmt.Sprintf(`{"code":413,"error":"request exceeds the project's limit of %s a minute","status":"Request Entity Too Large"}`, limit)
			if r.GetStatus() != 413 || string(r.GetBody()) != want || r.GetHeaders()["Retry-After"] != "" {
				t.Errorf("answered %d %v %s, want %s", r.GetStatus(), r.GetHeaders(), r.GetBody(), want)
			}
		}
		h := open(t, 100, 0)
		tooLarge(t, send(h, batch(101, "tok-1")), "100 events")
		tooLarge(t, imp(h, "strict=1", batch(150, "tok-1")), "100 events")
		tooLarge(t, imp(h, "verbose=1", batch(150, "tok-1")), "100 events")
		tooLarge(t, send(h, batch(202, "tok-2", "tok-1")), "100 events")
		var typedEvents []*ingestionv1.Event
		for i := range 101 {
			typedEvents = append(typedEvents, typed("E", start, "u", fmt.Sprint(i)))
		}
		_, err := h.in.ImportEvents(context.Background(), &ingestionv1.ImportEventsRequest{Parent: "projects/1", Events: typedEvents})
		if err == nil || !strings.Contains(err.Error(), "the project's limit of 100 events a minute") {
			t.Errorf("a typed import answered %v", err)
		}
		if n := len(h.export(1)) + len(h.export(2)); n != 0 {
			t.Errorf("%d events stored", n)
		}
		good(t, send(h, batch(100, "tok-1"))) // nothing of it was counted
		tooLarge(t, send(h, batch(101, "tok-1")), "100 events")
		after(t, send(h, batch(100, "tok-1")), "60")

		body := batch(50, "tok-1")
		h = open(t, 0, int64(len(body))-1)
		tooLarge(t, imp(h, "strict=0", body), fmt.Sprint(len(body)-1, " bytes"))
		good(t, imp(h, "strict=0", batch(40, "tok-1")))
	})
	t.Run("profiles and strangers do not count", func(t *testing.T) {
		h := open(t, 1, 0)
		send(h, batch(50, "nope"))
		for i := range 5 {
			h.engage(1, set(fmt.Sprint("u", i), props{"a": 1}))
		}
		good(t, send(h, batch(1, "tok-1")))
	})
	t.Run("off by default", func(t *testing.T) {
		h := newHarness(t)
		for range 20 {
			good(t, send(h, batch(2000, "tok-1")))
		}
	})
}
