package ingest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// Ingester takes requests of Mixpanel's wire and typed batches.
type Ingester struct {
	registry project.Registry
	pipeline *Pipeline
	ledger   ledger.Ledger
	resolver *identity.Resolver
	limits   wire.Limits
	now      project.Clock
	systems  *Systems
}

// NewIngester puts the decoders in front of a pipeline.
func NewIngester(reg project.Registry, p *Pipeline, l ledger.Ledger, r *identity.Resolver, s *Systems, limits wire.Limits, now project.Clock) *Ingester {
	return &Ingester{registry: reg, pipeline: p, ledger: l, resolver: r, limits: limits, now: now, systems: s}
}

// Systems remembers the identity system in force for each project; it never
// changes once it is known.
type Systems struct {
	ledger ledger.Ledger
	known  sync.Map // project id → project.IdentitySystem
}

// NewSystems makes an empty memory over a ledger.
func NewSystems(l ledger.Ledger) *Systems { return &Systems{ledger: l} }

// Of returns the system of a project that Freeze has seen.
func (s *Systems) Of(p *project.Project) project.IdentitySystem {
	if v, ok := s.known.Load(p.ID); ok {
		sys, _ := v.(project.IdentitySystem)
		return sys
	}
	return p.Identity
}

// Freeze makes sure that the ledger knows the project and its system.
func (s *Systems) Freeze(ctx context.Context, p *project.Project) (project.IdentitySystem, error) {
	if v, ok := s.known.Load(p.ID); ok {
		sys, _ := v.(project.IdentitySystem)
		return sys, nil
	}
	sys, err := s.ledger.Freeze(ctx, p.ID, p.Identity)
	if err != nil {
		return 0, err
	}
	if sys != p.Identity {
		slog.WarnContext(ctx, "identity system differs from the registry's; the one the data was stored with stays in force", "project", p.ID, "in_force", sys.String(), "registry", p.Identity.String())
	}
	s.known.Store(p.ID, sys)
	return sys, nil
}

// Raw takes one request and returns the HTTP answer to send.
func (in *Ingester) Raw(ctx context.Context, r *wire.Request) *wire.Response {
	ctx, span := tracer.Start(ctx, "ingestion.ingest_raw", trace.WithAttributes(attribute.String("cohortbridge.endpoint", r.Endpoint.String()), attribute.Int("cohortbridge.body.bytes", len(r.Body))))
	defer span.End()
	defer in.pipeline.Begin()()
	params := wire.QueryParams(r)
	resp, err := in.raw(ctx, r, &params)
	if err != nil {
		resp = in.refuse(ctx, r.Endpoint, &params, err)
	}
	span.SetAttributes(attribute.Int("http.response.status_code", resp.Status))
	if resp.Status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(resp.Status))
	}
	return resp
}

func (in *Ingester) raw(ctx context.Context, r *wire.Request, params *wire.Params) (*wire.Response, error) {
	var proj *project.Project
	if r.Endpoint == wire.Import {
		var err error
		// Before anything is decompressed: a stranger costs a look-up, not a body.
		if proj, err = in.authenticate(ctx, r.Authorization, params.ProjectID); err != nil {
			return nil, err
		}
	}
	payload, err := wire.Open(r, in.limits)
	defer payload.Release()
	*params = payload.Params
	if err != nil {
		return nil, err
	}
	switch r.Endpoint {
	case wire.Track, wire.Import:
		return in.events(ctx, r, payload, proj)
	default:
		return in.profiles(ctx, r, payload)
	}
}

func (in *Ingester) refuse(ctx context.Context, e wire.Endpoint, p *wire.Params, err error) *wire.Response {
	if r, ok := errors.AsType[*wire.Refusal](err); ok {
		return wire.Refused(e, p, r)
	}
	f := fault.As(err)
	switch fault.CodeOf(err) {
	case fault.Unauthenticated, fault.Denied, fault.NotFound:
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusUnauthorized, Text: "Invalid credentials"})
	case fault.Invalid:
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusBadRequest, Text: f.Public})
	case fault.Exhausted:
		return wire.Busy(http.StatusTooManyRequests, int(f.RetryAfter/time.Second))
	case fault.Unavailable:
		return wire.Busy(http.StatusServiceUnavailable, int(f.RetryAfter/time.Second))
	default:
		slog.ErrorContext(ctx, "ingest failed", "endpoint", e.String(), "error", err)
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusInternalServerError, Text: "internal error"})
	}
}

// authenticate reads a Basic credential, in base64 or, as Mixpanel takes it too, literally.
func (in *Ingester) authenticate(ctx context.Context, header, projectID string) (*project.Project, error) {
	scheme, cred, ok := strings.Cut(strings.TrimSpace(header), " ")
	if !ok || !strings.EqualFold(scheme, "basic") {
		return nil, fault.New(fault.Unauthenticated, "CREDENTIAL_MISSING", "a Basic credential is required")
	}
	cred = strings.TrimSpace(cred)
	if b, err := base64.StdEncoding.DecodeString(cred); err == nil && bytes.IndexByte(b, ':') >= 0 {
		cred = string(b)
	}
	user, secret, _ := strings.Cut(cred, ":")
	if user == "" {
		return nil, fault.New(fault.Unauthenticated, "CREDENTIAL_MISSING", "a Basic credential is required")
	}
	return in.registry.Authenticate(ctx, project.Credential{Username: user, Secret: secret, ProjectID: projectID})
}

// scratch is the memory one request decodes into.
type scratch struct {
	dec    *event.Decoder
	events []event.Event
	good   []*event.Event
}

var scratches = sync.Pool{New: func() any { return &scratch{dec: event.NewDecoder(64 << 10)} }}

func (in *Ingester) events(ctx context.Context, r *wire.Request, payload *wire.Payload, proj *project.Project) (*wire.Response, error) {
	sc, _ := scratches.Get().(*scratch)
	defer func() {
		clear(sc.events)
		clear(sc.good)
		sc.events, sc.good = sc.events[:0], sc.good[:0]
		sc.dec.Reset()
		scratches.Put(sc)
	}()
	rules := event.Rules{Endpoint: event.Track, NowMS: in.now().UnixMilli()}
	if r.Endpoint == wire.Import {
		rules.Endpoint, rules.Strict = event.Import, payload.Params.Strict
	} else if payload.Params.IP {
		rules.HashAddress = r.ClientIP
	}
	_, span := tracer.Start(ctx, "ingestion.decode")
	failures, err := sc.decode(payload)
	span.SetAttributes(attribute.Int("cohortbridge.events", len(sc.events)), attribute.Int("cohortbridge.json.bytes", len(payload.JSON)), attribute.Int("cohortbridge.events.invalid", len(failures)))
	span.End()
	if err != nil {
		return nil, err
	}
	failures, ignored, err := in.finish(ctx, sc, &rules, proj, failures)
	if err != nil {
		return nil, err
	}
	if _, err := in.pipeline.Submit(ctx, sc.good, r.Endpoint == wire.Import); err != nil {
		return nil, err
	}
	accepted := len(sc.good) + ignored
	byIndex(failures)
	if r.Endpoint == wire.Import {
		return wire.Imported(&payload.Params, accepted, failures), nil
	}
	text := "no valid event"
	if len(failures) > 0 {
		text = failures[0].Message
	}
	return wire.Simple(&payload.Params, accepted > 0 || len(failures) == 0, text), nil
}

func byIndex(failures []*event.Failure) {
	slices.SortStableFunc(failures, func(a, b *event.Failure) int { return a.Index - b.Index })
}

// dropLast drops the failure of a line that turns out to be broken JSON, so that
// it is reported once.
func dropLast(failures []*event.Failure, index int) []*event.Failure {
	if n := len(failures); n > 0 && failures[n-1].Index == index {
		return failures[:n-1]
	}
	return failures
}

// decode reads all events of a payload into sc.events, but for those that failed.
func (sc *scratch) decode(payload *wire.Payload) ([]*event.Failure, error) {
	var failures []*event.Failure
	err := each(payload, func(dec *jsontext.Decoder, i int) error {
		sc.events = append(sc.events, event.Event{})
		ev := &sc.events[len(sc.events)-1]
		ev.Reset(i)
		f, err := sc.dec.Decode(dec, ev)
		if f != nil {
			failures = append(failures, f)
			sc.events = sc.events[:len(sc.events)-1]
		}
		return err
	}, func(i int) {
		// The line's syntax is broken: what was read of it is dropped.
		if n := len(sc.events); n > 0 && sc.events[n-1].Index == i {
			sc.events = sc.events[:n-1]
		}
		failures = append(dropLast(failures, i), &event.Failure{Index: i, Field: "event", Message: "'event' is invalid: not valid JSON"})
	})
	return failures, err
}

// each calls one for every element of a payload, with its position. A broken
// line of NDJSON calls broken and goes on; other broken JSON is a refusal.
func each(payload *wire.Payload, one func(*jsontext.Decoder, int) error, broken func(int)) error {
	if payload.Lines {
		i := 0
		for line := range bytes.Lines(payload.JSON) {
			line = bytes.TrimSpace(line)
			if len(line) == 0 {
				continue
			}
			if i == event.MaxBatch {
				return wire.TooMany(event.MaxBatch)
			}
			dec := jsontext.NewDecoder(bytes.NewBuffer(line), event.Options...)
			if err := one(dec, i); err != nil {
				broken(i)
			} else if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
				broken(i)
			}
			i++
		}
		return nil
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(payload.JSON), event.Options...)
	if dec.PeekKind() != '[' {
		if err := one(dec, 0); err != nil {
			return syntax(dec, err)
		}
	} else {
		if _, err := dec.ReadToken(); err != nil {
			return syntax(dec, err)
		}
		for i := 0; dec.PeekKind() != ']'; i++ {
			if i == event.MaxBatch {
				return wire.TooMany(event.MaxBatch)
			}
			if err := one(dec, i); err != nil {
				return syntax(dec, err)
			}
		}
		if _, err := dec.ReadToken(); err != nil {
			return syntax(dec, err)
		}
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return wire.Invalid("the body goes on after its JSON value")
	}
	return nil
}

func syntax(dec *jsontext.Decoder, err error) error {
	return wire.InvalidJSON(dec.InputOffset(), errors.Is(err, jsontext.ErrDuplicateName))
}

// finish gives events their project and applies the rules. Events that pass are
// collected in sc.good.
func (in *Ingester) finish(ctx context.Context, sc *scratch, rules *event.Rules, proj *project.Project, failures []*event.Failure) (_ []*event.Failure, ignored int, err error) {
	var system project.IdentitySystem
	var token []byte // of proj, when it was found by token
	byToken := proj == nil
	if !byToken {
		if system, err = in.systems.Freeze(ctx, proj); err != nil {
			return nil, 0, err
		}
	}
	for i := range sc.events {
		ev := &sc.events[i]
		if byToken && (proj == nil || !bytes.Equal(token, ev.Token)) {
			if len(ev.Token) == 0 {
				failures = append(failures, ev.Invalid("properties.token", "missing"))
				continue
			}
			p, err := in.registry.ByToken(ctx, string(ev.Token))
			if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
				failures = append(failures, ev.Invalid("properties.token", "no such project"))
				continue
			}
			if err != nil {
				return nil, 0, err
			}
			if system, err = in.systems.Freeze(ctx, p); err != nil {
				return nil, 0, err
			}
			proj, token = p, ev.Token
		}
		if ev.Ignored {
			ignored++
			continue
		}
		ev.Project = proj
		rules.System = system
		if rules.Endpoint == event.Track && ev.Name == "$merge" {
			failures = append(failures, ev.Invalid("event", "$merge is taken by /import only"))
			continue
		}
		if f := ev.Finish(rules); f != nil {
			failures = append(failures, f)
			continue
		}
		sc.good = append(sc.good, ev)
	}
	return failures, ignored, nil
}

// Import takes typed events: the same JSON and rules as a strict /import, but
// `$insert_id` may be missing. isJSON is an array of event objects.
func (in *Ingester) Import(ctx context.Context, proj *project.Project, json []byte) (Result, []*event.Failure, error) {
	defer in.pipeline.Begin()()
	sc := &scratch{dec: event.NewDecoder(len(json))}
	failures, err := sc.decode(&wire.Payload{JSON: json})
	if err != nil {
		return Result{}, nil, asFault(err)
	}
	rules := event.Rules{Endpoint: event.Import, NowMS: in.now().UnixMilli()}
	failures, _, err = in.finish(ctx, sc, &rules, proj, failures)
	if err != nil {
		return Result{}, nil, err
	}
	res, err := in.pipeline.Submit(ctx, sc.good, true)
	return res, failures, err
}

func asFault(err error) error {
	if r, ok := errors.AsType[*wire.Refusal](err); ok {
		if r.Status == http.StatusRequestEntityTooLarge {
			return fault.New(fault.TooLarge, "BATCH_TOO_LARGE", "%s", r.Text)
		}
		return fault.New(fault.Invalid, "INVALID_JSON", "%s", r.Text)
	}
	return err
}

func noToken(index int) *event.Failure {
	return &event.Failure{Index: index, Field: "$token", Message: "'$token' is invalid: missing"}
}

func (in *Ingester) profiles(ctx context.Context, r *wire.Request, payload *wire.Payload) (*wire.Response, error) {
	var updates []*profile.Update
	var failures []*event.Failure
	err := each(payload, func(dec *jsontext.Decoder, i int) error {
		u := &profile.Update{Index: i}
		f, err := profile.Decode(dec, u)
		switch {
		case err == nil && r.Endpoint == wire.Groups && (u.GroupKey == "" || u.GroupID == "") && (f == nil || f.Field == "$distinct_id"):
			failures = append(failures, &event.Failure{Index: i, Field: "$group_key", Message: "'$group_key' is invalid: $group_key and $group_id are required"})
		case f != nil && u.Token == "" && u.Empty() && u.DistinctID != "":
			failures = append(failures, noToken(i))
		case f != nil:
			failures = append(failures, f)
		case err == nil:
			updates = append(updates, u)
		}
		return err
	}, func(i int) {
		if n := len(updates); n > 0 && updates[n-1].Index == i {
			updates = updates[:n-1]
		}
		failures = append(dropLast(failures, i), &event.Failure{Index: i, Field: "$", Message: "'$' is invalid: not valid JSON"})
	})
	if err != nil {
		return nil, err
	}
	// Updates of one project stay in order; projects are independent of each other.
	var order []*project.Project
	byProject := map[*project.Project][]*profile.Update{}
	for _, u := range updates {
		if u.Token == "" {
			failures = append(failures, noToken(u.Index))
			continue
		}
		p, err := in.registry.ByToken(ctx, u.Token)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
			failures = append(failures, &event.Failure{Index: u.Index, Field: "$token", Message: "'$token' is invalid: no such project"})
			continue
		}
		if err != nil {
			return nil, err
		}
		if byProject[p] == nil {
			order = append(order, p)
		}
		byProject[p] = append(byProject[p], u)
	}
	applied := 0
	for _, p := range order {
		n, f, err := in.Update(ctx, p, byProject[p])
		if err != nil {
			return nil, err
		}
		applied += n
		failures = append(failures, f...)
	}
	byIndex(failures)
	return wire.Updated(&payload.Params, applied, failures), nil
}
