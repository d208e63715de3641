package project

import (
	"context"
	"crypto/sha256"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Cache keeps the registry's answers for a short time: good ones for TTL, "no
// such project" for a tenth of it, failures of the registry not at all. It holds
// at most Size entries of each kind and is safe for concurrent use.
type Cache struct {
	next     Registry
	ttl      time.Duration
	size     int
	now      Clock
	flight   singleflight.Group
	mu       sync.RWMutex
	byToken  map[string]cached
	byID     map[int64]cached
	byBearer map[[32]byte]cached // by digest, so that no secret lies in memory longer than its request
}

// fetchTimeout bounds one question to the registry.
const fetchTimeout = 10 * time.Second

type cached struct {
	p     *Project
	err   error
	until time.Time
}

// NewCache puts a cache of size entries before next.
func NewCache(next Registry, ttl time.Duration, size int, now Clock) *Cache {
	return &Cache{next: next, ttl: ttl, size: size, now: now, byToken: map[string]cached{}, byID: map[int64]cached{}, byBearer: map[[32]byte]cached{}}
}

// ByToken implements Registry.
func (c *Cache) ByToken(ctx context.Context, token string) (*Project, error) {
	return lookup(ctx, c, c.byToken, token, "t"+token, func(ctx context.Context) (*Project, error) { return c.next.ByToken(ctx, token) })
}

// ByID implements Registry.
func (c *Cache) ByID(ctx context.Context, id int64) (*Project, error) {
	return lookup(ctx, c, c.byID, id, "i"+strconv.FormatInt(id, 10), func(ctx context.Context) (*Project, error) { return c.next.ByID(ctx, id) })
}

// Authenticate implements Registry.
func (c *Cache) Authenticate(ctx context.Context, cr Credential) (*Project, error) {
	key := sha256.Sum256([]byte(cr.Username + "\x00" + cr.Secret + "\x00" + cr.ProjectID))
	return lookup(ctx, c, c.byBearer, key, "b"+string(key[:]), func(ctx context.Context) (*Project, error) { return c.next.Authenticate(ctx, cr) })
}

func lookup[K comparable](ctx context.Context, c *Cache, m map[K]cached, key K, flightKey string, fetch func(context.Context) (*Project, error)) (*Project, error) {
	get := func() (cached, bool) {
		c.mu.RLock()
		defer c.mu.RUnlock()
		e, ok := m[key]
		return e, ok && c.now().Before(e.until)
	}
	if e, ok := get(); ok {
		return e.p, e.err
	}
	// One question at a time for a key: callers that find it expired together would
	// each have the registry check the same password, which is slow on purpose.
	v, err, _ := c.flight.Do(flightKey, func() (any, error) {
		if e, ok := get(); ok { // answered since the caller looked
			return e.p, e.err
		}
		// The answer is for all of them, so it does not end with the first one's context.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		p, err := fetch(ctx)
		e := cached{p: p, err: err, until: c.now().Add(c.ttl)}
		if err != nil {
			switch fault.CodeOf(err) {
			case fault.NotFound, fault.Unauthenticated, fault.Denied:
				e.until = c.now().Add(c.ttl / 10)
			default:
				return nil, err // the registry could not answer: ask again next time
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(m) >= c.size {
			clear(m) // rare and cheap to refill; keeps the bound without bookkeeping on every hit
		}
		m[key] = e
		return p, err
	})
	p, _ := v.(*Project)
	return p, err
}
