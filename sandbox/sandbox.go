// Package sandbox is a CleverTap that runs locally: the API calls cohortbridge
// makes, answered as CleverTap answers them, a Segments page to look at, and
// knobs to make it misbehave. It shares no code with the client.
package sandbox

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// DefaultAccountID and DefaultPasscode are the account a sandbox has unless told
// otherwise. They guard nothing: the sandbox is local and its pages are open.
const (
	DefaultAccountID = "SBX-000-000Z"
	DefaultPasscode  = "SAN-DBO-XXPC"
)

// Config is how a sandbox starts.
type Config struct {
	// Accounts maps account ids to passcodes; empty means the default account.
	Accounts map[string]string
	// Knobs are the initial knobs.
	Knobs Knobs
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Campaign sends campaign events; nil means a plain HTTP client.
	Campaign *http.Client
}

// Sandbox is the local CleverTap.
type Sandbox struct {
	accounts map[string]*account
	order    []string
	knobs    *knobBox
	now      func() time.Time
	campaign *http.Client
	mux      *http.ServeMux

	logMu   sync.Mutex
	log     []logLine
	calls   map[string]int64
	pending sync.WaitGroup
	stop    chan struct{}
	once    sync.Once
}

// logLine is one request, without headers and body.
type logLine struct {
	Time        time.Time `json:"time"`
	Account     string    `json:"account"`
	Method      string    `json:"method"`
	Path        string    `json:"path"`
	Status      int       `json:"status"`
	Note        string    `json:"note,omitempty"`
	Traceparent string    `json:"traceparent,omitempty"`
}

// New makes a sandbox.
func New(cfg Config) (*Sandbox, error) {
	if len(cfg.Accounts) == 0 {
		cfg.Accounts = map[string]string{DefaultAccountID: DefaultPasscode}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Campaign == nil {
		cfg.Campaign = &http.Client{Timeout: time.Minute}
	}
	k, err := newKnobBox(cfg.Knobs)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{accounts: map[string]*account{}, knobs: k, now: cfg.Now, campaign: cfg.Campaign, calls: map[string]int64{}, stop: make(chan struct{})}
	ids := map[string]struct{}{}
	for id, pass := range cfg.Accounts {
		if id == "" || pass == "" {
			return nil, errors.New("an account needs an id and a passcode")
		}
		s.accounts[id], ids[id] = newAccount(id, pass), struct{}{}
	}
	s.order = sortedKeys(ids)
	s.routes()
	return s, nil
}

// Handler serves the API, the sandbox's own JSON under /sandbox/ and the pages.
func (s *Sandbox) Handler() http.Handler { return s.mux }

// Close ends the processing of custom lists that is under way, and drops their files.
func (s *Sandbox) Close() {
	s.once.Do(func() { close(s.stop) })
	s.campaign.CloseIdleConnections()
	s.pending.Wait()
	for _, a := range s.accounts {
		a.mu.Lock()
		for _, u := range a.uploads {
			u.drop()
		}
		a.mu.Unlock()
	}
}

// Concurrency limits per account (https://developer.clevertap.com/docs/api-request-limit).
const (
	uploadLimit = 15
	otherLimit  = 3
)

func (s *Sandbox) routes() {
	s.mux = http.NewServeMux()
	api := func(pattern, group string, limit int, h apiFunc) { s.mux.HandleFunc(pattern, s.api(group, limit, h)) }
	api("GET /v1/connect", "connect", 0, s.connect)
	api("POST /1/upload", "upload", uploadLimit, s.upload)
	api("POST /get_custom_list_segment_url", "list", otherLimit, s.listURL)
	api("POST /upload_custom_list_segment_completed", "list", otherLimit, s.listCompleted)
	api("POST /api/createSegment", "create segment", otherLimit, s.createSegment)
	api("POST /api/updateSegment", "update segment", otherLimit, s.updateSegment)
	api("GET /1/profile.json", "profiles", otherLimit, s.profile)
	api("POST /1/profiles.json", "profiles", otherLimit, s.openProfiles)
	api("GET /1/profiles.json", "profiles", otherLimit, s.pageProfiles)
	api("POST /1/delete/profiles.json", "delete", otherLimit, s.deleteProfiles)
	// The private partner endpoint is not public; this path exists only here.
	api("POST /partner/mixpanel/cohort", "partner", uploadLimit, s.partner)
	s.mux.HandleFunc("PUT /s3/{token}", s.putList)

	s.mux.HandleFunc("GET /sandbox/knobs", s.getKnobs)
	s.mux.HandleFunc("PUT /sandbox/knobs", s.putKnobs)
	s.mux.HandleFunc("GET /sandbox/segments", s.jsonSegments)
	s.mux.HandleFunc("GET /sandbox/segments/{id}/members", s.jsonMembers)
	s.mux.HandleFunc("GET /sandbox/statistics", s.jsonStatistics)
	s.mux.HandleFunc("GET /sandbox/events", s.jsonEvents)
	s.mux.HandleFunc("GET /sandbox/errors", s.jsonErrors)
	s.mux.HandleFunc("GET /sandbox/requests", s.jsonRequests)
	s.mux.HandleFunc("POST /sandbox/campaign", s.postCampaign)
	s.mux.HandleFunc("GET /{$}", s.htmlSegments)
	s.mux.HandleFunc("GET /segments/{id}", s.htmlSegment)
	s.mux.HandleFunc("GET /errors", s.htmlErrors)
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, map[string]any{"status": "ok"}) })
}

// apiFunc answers one API call of an authenticated account.
type apiFunc func(a *account, w http.ResponseWriter, r *http.Request)

// fail answers as CleverTap fails.
func fail(w http.ResponseWriter, code int, text string) {
	writeJSON(w, code, map[string]any{"status": "fail", "error": text, "code": code})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client went away; nothing to do about it
}

// maxBody bounds a call's body; CleverTap documents no cap, this one protects us.
const maxBody = 64 << 20

// api wraps a handler with the knobs, the credentials, the account's concurrency
// limit and the request log.
func (s *Sandbox) api(group string, limit int, h apiFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, status: 200}
		id := r.Header.Get("X-CleverTap-Account-Id")
		note := ""
		defer func() { s.logCall(r, id, rec.status, note) }()
		a := s.accounts[id]
		f := s.knobs.draw(r.Method, r.URL.Path)
		switch {
		case a == nil:
			fail(rec, 401, "Account ID is not valid")
			return
		case f.region || subtle.ConstantTimeCompare([]byte(r.Header.Get("X-CleverTap-Passcode")), []byte(a.passcode)) != 1:
			fail(rec, 401, "Invalid Credentials")
			return
		}
		if limit > 0 && !a.enter(group, limit) {
			note = "over the concurrency limit"
			fail(rec, 429, "Too many concurrent requests")
			return
		}
		defer a.leave(group)
		body, err := io.ReadAll(http.MaxBytesReader(rec, r.Body, maxBody))
		if err != nil {
			fail(rec, 400, "Malformed request")
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if f.latency > 0 {
			t := time.NewTimer(f.latency)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.Context().Done():
				return
			case <-s.stop:
			}
		}
		switch {
		case f.too:
			note = "knob rate_429"
			fail(rec, 429, "Too many concurrent requests")
		case f.fail != 0 && f.after:
			note = "knob rate_5xx, after it took effect"
			h(a, discard{http.Header{}}, r)
			fail(rec, f.fail, http.StatusText(f.fail))
		case f.fail != 0:
			note = "knob rate_5xx"
			fail(rec, f.fail, http.StatusText(f.fail))
		case f.refuse:
			note = "knob fail_with_200"
			writeJSON(rec, 200, map[string]any{"status": "fail", "error": "The request was not processed (knob fail_with_200)", "code": 400})
		default:
			h(a, rec, r)
		}
	}
}

// discard is an answer nobody gets.
type discard struct{ h http.Header }

// Header implements http.ResponseWriter.
func (d discard) Header() http.Header { return d.h }

// Write implements http.ResponseWriter.
func (d discard) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (d discard) WriteHeader(int) {}

type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers the status for the log.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (a *account) enter(group string, limit int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inFlight[group] >= limit {
		return false
	}
	a.inFlight[group]++
	a.peak[group] = max(a.peak[group], a.inFlight[group])
	return true
}

func (a *account) leave(group string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inFlight[group] > 0 {
		a.inFlight[group]--
	}
}

const keptRequests = 1000

func (s *Sandbox) logCall(r *http.Request, account string, status int, note string) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	s.calls[r.URL.Path+" "+strconv.Itoa(status)]++
	if len(s.log) >= keptRequests {
		s.log = append(s.log[:0], s.log[keptRequests/2:]...)
	}
	s.log = append(s.log, logLine{s.now(), account, r.Method, r.URL.Path, status, note, r.Header.Get("Traceparent")})
}

// connect is the credential check (https://developer.clevertap.com/docs/connect-api).
func (s *Sandbox) connect(_ *account, w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("partner") == "" {
		fail(w, 400, "partner is missing")
		return
	}
	writeJSON(w, 200, map[string]any{"status": "success", "message": "Connected", "code": 200})
}
