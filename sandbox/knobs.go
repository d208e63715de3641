package sandbox

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Knobs make the sandbox behave badly on purpose.
type Knobs struct {
	// LatencyMS is added to every API call, in milliseconds.
	LatencyMS int `json:"latency_ms"`
	// LatencyByPath is added on top, by path, e.g. {"/1/upload": 300}.
	LatencyByPath map[string]int `json:"latency_by_path,omitempty"`
	// Rate429 is the share of calls refused as too many, 0 to 1.
	Rate429 float64 `json:"rate_429"`
	// Rate5xx is the share of calls answered 500, 502 or 503; half of them after
	// the call took effect, as a broken network would look.
	Rate5xx float64 `json:"rate_5xx"`
	// PartialRate is the share of upload records refused with code 555, which a
	// repeated call may succeed with.
	PartialRate float64 `json:"partial_rate"`
	// PartialPattern refuses every upload record whose identity matches, finally,
	// with PartialCode. Without a PartialCode, an API segment passes such a user over
	// too, without a word in the answer.
	PartialPattern string `json:"partial_pattern"`
	// PartialCode is that code, 523 when 0. 515 and 516 refuse only records that
	// have an Email or a Phone.
	PartialCode int `json:"partial_code"`
	// FailWith200 answers every call that changes something with 200 and status
	// fail, without its effect.
	FailWith200 bool `json:"fail_with_200"`
	// SchemaDrop accepts uploads and loses events and custom properties to the
	// Error Stream, as a strict schema does.
	SchemaDrop bool `json:"schema_drop"`
	// CursorPending is how many polls of a page of an export answer that it is
	// still in progress.
	CursorPending int `json:"cursor_pending"`
	// WrongRegion answers every call as the host of another region: 401.
	WrongRegion bool `json:"wrong_region"`
	// ListDelayMS delays the processing of a custom list, in milliseconds.
	ListDelayMS int `json:"list_delay_ms"`
	// ListFails makes the processing of custom lists fail.
	ListFails bool `json:"list_fails"`
	// Seed fixes the order of the random refusals; 0 takes the clock's.
	Seed uint64 `json:"seed"`
}

// Validate names the knob that is out of range.
func (k Knobs) Validate() error {
	for name, r := range map[string]float64{"rate_429": k.Rate429, "rate_5xx": k.Rate5xx, "partial_rate": k.PartialRate} {
		if r < 0 || r > 1 {
			return fmt.Errorf("%s: want a share between 0 and 1", name)
		}
	}
	for name, n := range map[string]int{"latency_ms": k.LatencyMS, "list_delay_ms": k.ListDelayMS, "cursor_pending": k.CursorPending, "partial_code": k.PartialCode} {
		if n < 0 {
			return fmt.Errorf("%s: can't be negative", name)
		}
	}
	for path, n := range k.LatencyByPath {
		if n < 0 || !strings.HasPrefix(path, "/") {
			return fmt.Errorf("latency_by_path: want a path and milliseconds, not %q: %d", path, n)
		}
	}
	if _, err := regexp.Compile(k.PartialPattern); err != nil {
		return fmt.Errorf("partial_pattern: %w", err)
	}
	return nil
}

// fate is what the knobs decided for one call.
type fate struct {
	latency time.Duration
	too     bool // answer 429
	fail    int  // answer this 5xx, 0 for none
	after   bool // fail after the call took effect
	region  bool
	refuse  bool // answer 200 with status fail
}

type knobBox struct {
	mu      sync.Mutex
	k       Knobs
	rng     *rand.Rand
	pattern *regexp.Regexp
}

func newKnobBox(k Knobs) (*knobBox, error) {
	b := &knobBox{}
	return b, b.set(k)
}

func (b *knobBox) set(k Knobs) error {
	if err := k.Validate(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.k = k
	seed := k.Seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	b.rng = rand.New(rand.NewPCG(seed, seed))
	b.pattern = nil
	if k.PartialPattern != "" {
		b.pattern = regexp.MustCompile(k.PartialPattern)
	}
	return nil
}

func (b *knobBox) get() Knobs {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.k
}

func (b *knobBox) draw(method, path string) fate {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := fate{latency: time.Duration(b.k.LatencyMS+b.k.LatencyByPath[path]) * time.Millisecond, region: b.k.WrongRegion, refuse: b.k.FailWith200 && method == http.MethodPost}
	f.too = b.rng.Float64() < b.k.Rate429
	if b.rng.Float64() < b.k.Rate5xx {
		f.fail = []int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable}[b.rng.IntN(3)]
		f.after = b.rng.IntN(2) == 0
	}
	return f
}

// passesOver reports whether an API segment does not take an identity.
func (b *knobBox) passesOver(identity string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.k.PartialCode == 0 && b.pattern != nil && b.pattern.MatchString(identity)
}

// refuses says with which code an upload record is refused, 0 for not.
func (b *knobBox) refuses(identity string, data map[string]any) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pattern != nil && b.pattern.MatchString(identity) {
		needs, ok := map[int]string{515: "Email", 516: "Phone"}[b.k.PartialCode]
		switch _, has := data[needs]; {
		case ok && !has:
		case b.k.PartialCode != 0:
			return b.k.PartialCode
		default:
			return 523
		}
	}
	if b.k.PartialRate > 0 && b.rng.Float64() < b.k.PartialRate {
		return 555
	}
	return 0
}

func (s *Sandbox) getKnobs(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, s.knobs.get()) }

// putKnobs replaces all knobs; one that is left out goes back to its default.
func (s *Sandbox) putKnobs(w http.ResponseWriter, r *http.Request) {
	var k Knobs
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&k)
	if err == nil {
		err = s.knobs.set(k)
	}
	if err != nil {
		writeJSON(w, 400, map[string]any{"error": err.Error()})
		return
	}
	writeJSON(w, 200, k)
}
