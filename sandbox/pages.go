package sandbox

import (
	_ "embed"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"time"
)

//go:embed pages.html
var pagesHTML string

var pages = template.Must(template.New("").Parse(pagesHTML))

// SegmentInfo is a line of the Segments page.
type SegmentInfo struct {
	// ID is the sandbox's number of the segment.
	ID int64 `json:"id"`
	// Account is the account it is in.
	Account string `json:"account"`
	// Name is the segment's name.
	Name string `json:"name"`
	// Type is what CleverTap's column shows, e.g. "Partner - Mixpanel".
	Type string `json:"type"`
	// Key is the partner's segment id, the list's name, or the customer_segment_id.
	Key string `json:"key"`
	// Size is the number of members.
	Size int `json:"size"`
	// Updated is when it last changed.
	Updated time.Time `json:"updated"`
}

func info(a *account, s *segment) SegmentInfo {
	return SegmentInfo{s.ID, a.id, s.Name, string(s.Kind), s.Key, len(s.Members), s.Updated}
}

// accountsOf are the accounts a request is about: the one it names, or all.
func (s *Sandbox) accountsOf(r *http.Request) []*account {
	var out []*account
	want := r.URL.Query().Get("account")
	for _, id := range s.order {
		if want == "" || want == id {
			out = append(out, s.accounts[id])
		}
	}
	return out
}

func (s *Sandbox) segmentInfos(r *http.Request) []SegmentInfo {
	out := []SegmentInfo{}
	for _, a := range s.accountsOf(r) {
		a.mu.Lock()
		for _, seg := range a.sortedSegments() {
			out = append(out, info(a, seg))
		}
		a.mu.Unlock()
	}
	return out
}

// Segments is the answer of GET /sandbox/segments.
type Segments struct {
	// Segments are all segments, by account and id.
	Segments []SegmentInfo `json:"segments"`
}

func (s *Sandbox) jsonSegments(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, 200, Segments{s.segmentInfos(r)})
}

// Members is the answer of GET /sandbox/segments/{id}/members.
type Members struct {
	// Segment describes the segment.
	Segment SegmentInfo `json:"segment"`
	// Members are the identities, sorted.
	Members []string `json:"members"`
}

// find returns the segment of the path, with its account locked.
func (s *Sandbox) find(r *http.Request) (*account, *segment) {
	id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64)
	for _, a := range s.accountsOf(r) {
		a.mu.Lock()
		for _, seg := range a.segments {
			if seg.ID == id {
				return a, seg
			}
		}
		a.mu.Unlock()
	}
	return nil, nil
}

func (s *Sandbox) members(r *http.Request) (Members, bool) {
	a, seg := s.find(r)
	if a == nil {
		return Members{}, false
	}
	defer a.mu.Unlock()
	return Members{info(a, seg), sortedKeys(seg.Members)}, true
}

func (s *Sandbox) jsonMembers(w http.ResponseWriter, r *http.Request) {
	m, ok := s.members(r)
	if !ok {
		writeJSON(w, 404, map[string]any{"error": "no such segment"})
		return
	}
	writeJSON(w, 200, m)
}

// Statistics is the answer of GET /sandbox/statistics.
type Statistics struct {
	// Profiles is the number of users.
	Profiles int `json:"profiles"`
	// Events counts events by name; Partner Sync also by action.
	Events map[string]int64 `json:"events"`
	// Errors is the length of the Error Stream that is kept.
	Errors int `json:"errors"`
	// Calls counts API calls by path and status.
	Calls map[string]int64 `json:"calls"`
	// PeakInFlight is the most calls at once, by group.
	PeakInFlight map[string]int `json:"peak_in_flight"`
}

func (s *Sandbox) jsonStatistics(w http.ResponseWriter, r *http.Request) {
	st := Statistics{Events: map[string]int64{}, Calls: map[string]int64{}, PeakInFlight: map[string]int{}}
	for _, a := range s.accountsOf(r) {
		a.mu.Lock()
		st.Profiles += len(a.profiles)
		st.Errors += len(a.errors)
		for k, v := range a.eventTotals {
			st.Events[k] += v
		}
		for k, v := range a.peak {
			st.PeakInFlight[k] = max(st.PeakInFlight[k], v)
		}
		a.mu.Unlock()
	}
	s.logMu.Lock()
	for k, v := range s.calls {
		st.Calls[k] = v
	}
	s.logMu.Unlock()
	writeJSON(w, 200, st)
}

func (s *Sandbox) jsonEvents(w http.ResponseWriter, r *http.Request) {
	type answer struct {
		Events []userEvent   `json:"events"`
		Errors []streamEntry `json:"error_stream"`
		Outbox []mail        `json:"outbox"`
	}
	out := answer{[]userEvent{}, []streamEntry{}, []mail{}}
	for _, a := range s.accountsOf(r) {
		a.mu.Lock()
		for _, e := range a.events {
			out.Events = append(out.Events, e.shown())
		}
		out.Errors, out.Outbox = append(out.Errors, a.errors...), append(out.Outbox, a.outbox...)
		a.mu.Unlock()
	}
	writeJSON(w, 200, out)
}

// StreamEntry is a line of the Error Stream.
type StreamEntry struct {
	// Account is the account it is in.
	Account string `json:"account"`
	// Time is when it was written.
	Time time.Time `json:"time"`
	// Code is the record's code, 0 when there is none.
	Code int `json:"code"`
	// Source is the API it came from.
	Source string `json:"source"`
	// Detail says what was wrong with what.
	Detail string `json:"detail"`
}

// ErrorStream is the answer of GET /sandbox/errors.
type ErrorStream struct {
	// Errors are the entries that are kept, the newest first.
	Errors []StreamEntry `json:"errors"`
}

func (s *Sandbox) errorStream(r *http.Request) []StreamEntry {
	out := []StreamEntry{}
	for _, a := range s.accountsOf(r) {
		a.mu.Lock()
		for _, e := range a.errors {
			out = append(out, StreamEntry{a.id, e.Time, e.Code, e.Source, e.Detail})
		}
		a.mu.Unlock()
	}
	slices.Reverse(out)
	slices.SortStableFunc(out, func(a, b StreamEntry) int { return b.Time.Compare(a.Time) })
	return out
}

func (s *Sandbox) jsonErrors(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, 200, ErrorStream{s.errorStream(r)})
}

// shownErrors bounds the entries a page lists.
const shownErrors = 200

func (s *Sandbox) htmlErrors(w http.ResponseWriter, r *http.Request) {
	list := s.errorStream(r)
	render(w, "errors", map[string]any{"Errors": list[:min(shownErrors, len(list))], "More": max(0, len(list)-shownErrors)})
}

func (s *Sandbox) jsonRequests(w http.ResponseWriter, _ *http.Request) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	writeJSON(w, 200, map[string]any{"requests": s.log})
}

func (s *Sandbox) htmlSegments(w http.ResponseWriter, r *http.Request) {
	render(w, "segments", map[string]any{"Segments": s.segmentInfos(r), "Accounts": s.order})
}

// shownMembers bounds the members a page lists.
const shownMembers = 500

func (s *Sandbox) htmlSegment(w http.ResponseWriter, r *http.Request) {
	m, ok := s.members(r)
	if !ok {
		http.Error(w, "no such segment", http.StatusNotFound)
		return
	}
	render(w, "segment", map[string]any{"Segment": m.Segment, "Members": m.Members[:min(shownMembers, len(m.Members))], "More": max(0, len(m.Members)-shownMembers)})
}

func render(w http.ResponseWriter, name string, data any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_ = pages.ExecuteTemplate(w, name, data) // the client went away
}
