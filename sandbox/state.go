package sandbox

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// profile is a CleverTap user. Fields hold system and custom properties alike.
type profile struct {
	Identity string           `json:"identity"`
	Fields   map[string]any   `json:"profileData,omitempty"`
	unread   []jsontext.Value // members of partner messages not applied yet, oldest first
}

// segmentKind decides the Type that the Segments page shows.
type segmentKind string

const (
	partnerSegment segmentKind = "Partner - Mixpanel"
	listSegment    segmentKind = "Custom - List Based"
	apiSegment     segmentKind = "API Segments"
)

// segment is a named set of identities.
type segment struct {
	ID      int64
	Key     string // partner segment id, the list's name, or the customer_segment_id
	Name    string
	Kind    segmentKind
	Members map[string]struct{}
	Updated time.Time
}

// eventCount counts events of one name; the last ones are kept to look at.
type userEvent struct {
	Identity string         `json:"identity"`
	Event    string         `json:"event"`
	Time     time.Time      `json:"time"`
	Props    map[string]any `json:"properties,omitempty"`
	sync     *partnerSync   // of a Partner Sync event, instead of Props
	change   *segmentChange // of a Segment Membership Change event, likewise
}

// partnerSync is what a Partner Sync event says.
type partnerSync struct{ name, key, action string }

// segmentChange is what a Segment Membership Change event says.
type segmentChange struct {
	name, key, action string
	id                int64
}

// shown is the event with its properties.
func (e userEvent) shown() userEvent {
	if c := e.change; c != nil {
		// Underscores in one of the four, as CleverTap has it.
		e.Props = map[string]any{"Action": c.action, "Segment Name": c.name, "Segment ID": c.id, "Customer_Segment_ID": c.key}
	}
	if e.sync != nil {
		e.Props = map[string]any{
			"Partner Segment Name": e.sync.name, "Partner Segment ID": e.sync.key, "Action": e.sync.action, "CT Source": "Mixpanel", "Partner Name": "Mixpanel",
		}
	}
	return e
}

// streamEntry is a line of CleverTap's Error Stream.
type streamEntry struct {
	Time   time.Time `json:"time"`
	Code   int       `json:"code"`
	Source string    `json:"source"`
	Detail string    `json:"detail"`
}

// keptEvents bounds how many events and error entries are kept to look at.
const keptEvents = 10_000

// account is one CleverTap project.
type account struct {
	id       string
	passcode string

	mu          sync.Mutex
	profiles    map[string]*profile
	segments    map[string]*segment // by kind and key
	nextSegment int64
	sessions    map[string]*session
	uploads     map[string]*upload
	cursors     map[string]*cursor
	events      []userEvent
	eventTotals map[string]int64
	errors      []streamEntry
	outbox      []mail
	inFlight    map[string]int
	peak        map[string]int
}

func newAccount(id, passcode string) *account {
	return &account{
		id: id, passcode: passcode,
		profiles: map[string]*profile{}, segments: map[string]*segment{}, nextSegment: 1_700_000_000,
		sessions: map[string]*session{}, uploads: map[string]*upload{}, cursors: map[string]*cursor{}, eventTotals: map[string]int64{},
		inFlight: map[string]int{}, peak: map[string]int{},
	}
}

// upsert returns the profile of an identity, new if unknown. The caller holds mu.
func (a *account) upsert(identity string) *profile {
	p := a.profiles[identity]
	if p == nil {
		p = &profile{Identity: identity}
		a.profiles[identity] = p
	}
	return p
}

// set writes one field. The caller holds mu.
func (p *profile) set(key string, v any) {
	if p.Fields == nil {
		p.Fields = map[string]any{}
	}
	p.Fields[key] = v
}

// segmentFor returns the segment of a key, new if unknown. The caller holds mu.
func (a *account) segmentFor(kind segmentKind, key, name string) *segment {
	k := string(kind) + "\x00" + key
	s := a.segments[k]
	if s == nil {
		a.nextSegment++
		s = &segment{ID: a.nextSegment, Key: key, Name: name, Kind: kind, Members: map[string]struct{}{}}
		a.segments[k] = s
	}
	return s
}

// raise records an event. The caller holds mu.
func (a *account) raise(e userEvent) {
	a.eventTotals[e.Event]++
	if len(a.events) >= keptEvents {
		a.events = append(a.events[:0], a.events[keptEvents/2:]...)
	}
	a.events = append(a.events, e)
}

// logError adds to the Error Stream. The caller holds mu.
func (a *account) logError(now time.Time, code int, source, format string, args ...any) {
	if len(a.errors) >= keptEvents {
		a.errors = append(a.errors[:0], a.errors[keptEvents/2:]...)
	}
	a.errors = append(a.errors, streamEntry{now, code, source, fmt.Sprintf(format, args...)})
}

// sortedSegments lists the segments by id. The caller holds mu.
func (a *account) sortedSegments() []*segment {
	out := make([]*segment, 0, len(a.segments))
	for _, s := range a.segments {
		out = append(out, s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

func sortedKeys(m map[string]struct{}) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// forbiddenIdentities are the values CleverTap refuses, whatever their case
// (https://developer.clevertap.com/docs/upload-user-profiles-api).
var forbiddenIdentities = map[string]bool{
	"undefined": true, "null": true, "na": true, "n/a": true, "0": true, "nil": true, "-1": true, "infinity": true, "-infinity": true,
	"inf": true, "-inf": true, "nan": true, "-nan": true, "empty": true, "xxxxxx": true, "none": true, "": true,
}

func badIdentity(id string) bool {
	return len(id) >= 1024 || forbiddenIdentities[strings.ToLower(strings.TrimSpace(id))]
}
