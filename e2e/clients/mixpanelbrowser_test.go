//go:build clients

package clients

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

// scenario is one visitor of the page: what the script does, in which project, with
// which options of the SDK.
type scenario struct {
	Name    string         `json:"name"`
	Run     string         `json:"run"`
	Token   string         `json:"token"`
	Options map[string]any `json:"options"`
	Alias   bool           `json:"alias"`
	// API is where the SDK sends to: a proxy that keeps what passes.
	API string `json:"api"`
}

// passed are the requests that passed a proxy, in order: method, path, content type.
type passed struct {
	mu       sync.Mutex
	list     []string
	answered int
}

func (p *passed) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}

// front puts a proxy before the process, and at /passed the number of requests that
// were answered: a beacon of a page that is gone is seen there only.
func front(t *testing.T, c *harness.Client) (*passed, string) {
	t.Helper()
	to, err := url.Parse(c.Base)
	if err != nil {
		t.Fatal(err)
	}
	p := &passed{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.list = append(p.list, r.In.Method+" "+r.In.URL.Path+" "+r.In.Header.Get("Content-Type"))
	}, ModifyResponse: func(*http.Response) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.answered++
		return nil
	}}
	mux := http.NewServeMux()
	mux.Handle("/", proxy)
	mux.HandleFunc("GET /passed", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		_, _ = fmt.Fprint(w, p.answered) // a test's answer
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return p, s.URL
}

// browse lets visitors open a page of another origin that has the SDK. All that the
// browser finds wrong fails the test: errors in the console, refused answers,
// requests to other hosts.
func browse(t *testing.T, c *harness.Client, list ...scenario) (map[string]step, map[string]*passed) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sdk.js", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, "node_modules/mixpanel-browser/dist/mixpanel.umd.js")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(`<!doctype html><title>shop</title><link rel="icon" href="data:,"><script src="/sdk.js"></script>`)) // a test's answer
	})
	mux.HandleFunc("GET /other", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(`<!doctype html><title>elsewhere</title><link rel="icon" href="data:,">`)) // a test's answer
	})
	page := httptest.NewServer(mux)
	t.Cleanup(page.Close)
	proxies := map[string]*passed{}
	for i := range list {
		proxies[list[i].Name], list[i].API = front(t, c)
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	// By another name it is another site too, not only another port.
	site := strings.Replace(page.URL, "127.0.0.1", "localhost", 1)
	out := map[string]step{}
	for _, s := range script(t, "browser.js", len(list), "PAGE="+site, "TEXTS="+texts, "SCENARIOS="+string(b)) {
		out[s.Step] = s
	}
	return out, proxies
}

// cut is what the SDK makes of 300 emoji: 255 UTF-16 units, the last is half of one.
var cut = strings.Repeat("🎉", 127) + "\uFFFD"

func TestMixpanelBrowserSendsEverythingInBatches(t *testing.T) {
	t.Parallel()
	formats := []string{"base64", "json"}
	var list []scenario
	clients := map[string]*harness.Client{}
	for _, f := range formats {
		c := project(t, simplified)
		clients[f] = c
		options := map[string]any{} // base64 is what the SDK takes for other hosts
		if f == "json" {
			options["api_payload_format"] = "json"
		}
		list = append(list, scenario{Name: f, Run: "everything", Token: c.Creds.ProjectToken, Options: options}, scenario{Name: f + " deleting", Run: "deleting", Token: c.Creds.ProjectToken, Options: options})
	}
	ran, _ := browse(t, clients["json"], list...)
	for _, f := range formats {
		t.Run(f, func(t *testing.T) {
			c := clients[f]
			for _, r := range ran[f].Requests {
				if !strings.HasPrefix(r, "POST xhr ") {
					t.Errorf("a request %q", r)
				}
			}
			got := c.Export(t)
			// Each visitor that identifies sends $identify, an ordinary event here.
			if want := map[string]int{"Anonymous": 1, "Timed": 1, "Grouped": 1, "$identify": 2}; !reflect.DeepEqual(names(got), want) {
				t.Fatalf("stored %v, want %v", names(got), want)
			}
			for _, e := range got {
				props := e.Properties
				if e.Event != "$identify" && props["distinct_id"] != "browser-user" {
					t.Errorf("%s has the id %v", e.Event, props["distinct_id"])
				}
				switch e.Event {
				case "Anonymous":
					if props["text"] != texts || props["long"] != cut || !reflect.DeepEqual(props["list"], []any{texts}) || props["mp_lib"] != "web" {
						t.Errorf("Anonymous is stored as %v", props)
					}
				case "Timed":
					if d, ok := props["$duration"].(float64); !ok || d < 0.09 || d > 60 || props["plan"] != "pro" || props["since"] != 2026.0 || !reflect.DeepEqual(props["company"], []any{"acme"}) {
						t.Errorf("Timed is stored as %v", props)
					}
				case "Grouped":
					if props["x"] != 1.0 || !reflect.DeepEqual(props["team"], []any{"red", "blue"}) {
						t.Errorf("Grouped is stored as %v", props)
					}
				}
			}
			props := c.Profile(t, "browser-user")
			delete(props, "$last_seen")
			for name := range props { // what the SDK adds: the browser, the referrer
				if strings.HasPrefix(name, "$") && name != "$transactions" {
					delete(props, name)
				}
			}
			harness.SameProperties(t, "browser-user", props, map[string]any{
				"name": texts, "one": "x", "first": "yes", "visits": 4.0, "fresh": 2.0, "stays": 1.0, "tags": []any{"a", "c", "b"}, "pages": []any{},
				"when": "2026-01-02T03:04:05", "company": []any{"acme"}, "$transactions": []any{},
			})
			c.NoProfile(t, "browser-gone")
			harness.SameProperties(t, "company acme", c.Group(t, "company", "acme"), map[string]any{"name": texts, "plan": "pro", "first": "yes", "tags": []any{"b", "c"}})
			c.NoGroup(t, "company", "gone")
		})
	}
}

func TestMixpanelBrowserIsAnsweredWhenItSendsAtOnce(t *testing.T) {
	t.Parallel()
	plain, verbose := project(t, simplified), project(t, simplified)
	ran, _ := browse(t, plain,
		scenario{Name: "plain", Run: "unbatched", Token: plain.Creds.ProjectToken},
		scenario{Name: "verbose", Run: "unbatched", Token: verbose.Creds.ProjectToken, Options: map[string]any{"verbose": true, "api_payload_format": "json"}},
		scenario{Name: "refused", Run: "unbatched", Token: "no-such-token"},
	)
	good := map[string]any{"error": nil, "status": 1.0}
	for name, want := range map[string][]any{"plain": {1.0, 1.0, 1.0}, "verbose": {good, good, good}, "refused": {0.0, 0.0, 0.0}} {
		if got := ran[name].Callbacks; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the callbacks got %v, want %v", name, got, want)
		}
	}
	for _, c := range []*harness.Client{plain, verbose} {
		if got := names(c.Export(t)); !reflect.DeepEqual(got, map[string]int{"$identify": 1, "Unbatched": 1, "Beacon": 1}) {
			t.Errorf("stored %v", got)
		}
		for _, e := range c.Export(t, "Unbatched", "Beacon") {
			if e.Properties["text"] != texts || e.Properties["distinct_id"] != "browser-user" {
				t.Errorf("%s is stored as %v", e.Event, e.Properties)
			}
		}
		if got := c.Profile(t, "browser-user")["name"]; got != texts {
			t.Errorf("name %v", got)
		}
		if got := c.Group(t, "company", "acme")["name"]; got != texts {
			t.Errorf("name of the group %v", got)
		}
	}
}

func TestMixpanelBrowserSendsItsQueueByBeaconWhenThePageIsLeft(t *testing.T) {
	t.Parallel()
	base64, plain := project(t, simplified), project(t, simplified)
	_, proxies := browse(t, base64,
		scenario{Name: "base64", Run: "leaving", Token: base64.Creds.ProjectToken},
		scenario{Name: "json", Run: "leaving", Token: plain.Creds.ProjectToken, Options: map[string]any{"api_payload_format": "json"}},
	)
	for name, c := range map[string]*harness.Client{"base64": base64, "json": plain} {
		// A beacon as the page is left, the queue again by XHR, a beacon of the closed page.
		const beacon, xhr = "POST /track/ text/plain;charset=UTF-8", "POST /track/ application/x-www-form-urlencoded"
		if got := proxies[name].all(); !slices.Equal(got, []string{beacon, xhr, beacon}) {
			t.Errorf("%s: requests %q", name, got)
		}
		if got := names(c.Export(t)); !reflect.DeepEqual(got, map[string]int{"Left": 1, "Closed": 1}) {
			t.Errorf("%s: stored %v", name, got)
		}
		for _, e := range c.Export(t) {
			if e.Properties["text"] != texts {
				t.Errorf("%s: %s is stored as %v", name, e.Event, e.Properties)
			}
		}
	}
}

func TestMixpanelBrowserRepeatsABatchWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	c := project(t, simplified)
	ran, _ := browse(t, c, scenario{Name: "lost", Run: "lost", Token: c.Creds.ProjectToken})
	events := 0
	for _, r := range ran["lost"].Requests {
		if strings.HasSuffix(r, "/track/") {
			events++
		}
	}
	if events < 3 { // 60 events are two batches, and at least one came twice
		t.Errorf("only %d requests with events: nothing was repeated", events)
	}
	want := map[string]int{"$identify": 1}
	for i := range 60 {
		want[fmt.Sprintf("Repeated %d", i)] = 1
	}
	if got := names(c.Export(t)); !reflect.DeepEqual(got, want) {
		t.Errorf("stored %v", got)
	}
	if got := c.Profile(t, "browser-user")["name"]; got != texts {
		t.Errorf("name %v", got)
	}
	if got := c.Group(t, "company", "acme")["name"]; got != texts {
		t.Errorf("name of the group %v", got)
	}
}

func TestMixpanelBrowserIdentifyJoinsTheAnonymousHistory(t *testing.T) {
	t.Parallel()
	clustered, linked := project(t, original), project(t, simplified)
	ran, _ := browse(t, clustered,
		scenario{Name: "original", Run: "identify", Token: clustered.Creds.ProjectToken, Alias: true},
		scenario{Name: "simplified", Run: "identify", Token: linked.Creds.ProjectToken},
	)
	for name, c := range map[string]*harness.Client{"original": clustered, "simplified": linked} {
		if ran[name].DistinctID != "$device:"+ran[name].DeviceID || ran[name].DeviceID == "" {
			t.Fatalf("%s: the SDK's ids are %+v", name, ran[name])
		}
		events := c.Export(t, "Anonymous", "Known")
		if ids := harness.IDs(events); !reflect.DeepEqual(ids, []any{"browser-user", "browser-user"}) {
			t.Fatalf("%s: before and after identify the events have the ids %v", name, ids)
		}
		anonymous := ran[name].DistinctID
		if name == "original" { // there $identify names it so
			anonymous = ran[name].DeviceID
		}
		if was := events[0].Properties["$distinct_id_before_identity"]; was != anonymous {
			t.Errorf("%s: $distinct_id_before_identity = %v, want %s", name, was, anonymous)
		}
		if got := c.Profile(t, anonymous)["name"]; got != texts {
			t.Errorf("%s: the profile by the anonymous id has the name %v", name, got)
		}
	}
	if got := clustered.Profile(t, "browser-alias")["name"]; got != texts {
		t.Errorf("the profile by the alias has the name %v", got)
	}
}
