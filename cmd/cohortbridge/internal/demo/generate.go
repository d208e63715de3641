// Package demo shows the whole product at work on made-up data, and checks that
// what it shows is true.
package demo

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Size of the demo data.
const (
	users      = 2000
	days       = 60
	targetDays = 30 // window of the cohort
	seed       = 20_260_101
)

// event is what /import takes.
type event struct {
	Event      string         `json:"event"`
	Properties map[string]any `json:"properties"`
}

// update is what /engage takes.
type update map[string]any

// user is one made-up person, with what the cohort must make of them. It is
// computed here, from the data as it is made, and shares nothing with the engine.
type user struct {
	distinctID string // as the app identifies the person
	device     string // anonymous id before that, "" when none
	identity   string // `$CleverTap_user_id`, "" when none
	anonymous  bool   // never identified: no profile
	badEmail   bool
	badID      bool // an identity CleverTap refuses
	country    string
	carts      int // Add To Cart in the window
	purchases  int // Purchase in the window
}

// inCohort is the cohort's definition, in Go.
func (u *user) inCohort() bool {
	return !u.anonymous && u.carts >= 3 && u.purchases == 0 && (u.country == "IN" || u.country == "US")
}

// delivered is the identity under which the person must be in the segment, ""
// for one who can't be.
func (u *user) delivered() string {
	switch {
	case !u.inCohort() || u.badID:
		return ""
	case u.identity != "":
		return u.identity
	}
	return u.distinctID
}

// data is the made-up world.
type data struct {
	now     time.Time
	rng     *rand.Rand
	users   []*user
	events  []event
	updates []update
	n       int
}

var countries = []string{"IN", "US", "GB", "DE", "BR", "IN", "US", "ID"}

var plainEvents = []string{"App Launched", "Product Viewed", "Search", "Category Viewed", "Product Viewed"}

// generate makes the same users and events for the same seed; times hang on now.
func generate(now time.Time, token string) *data {
	d := &data{now: now.Truncate(time.Second), rng: rand.New(rand.NewPCG(seed, seed))}
	for i := range users {
		u := &user{distinctID: fmt.Sprintf("user-%05d", i), country: countries[d.rng.IntN(len(countries))]}
		switch {
		case i%10 == 9:
			u.anonymous = true
			u.distinctID = fmt.Sprintf("$device:%08x-0000-4000-8000-%012x", d.rng.Uint32(), i)
		case i%3 == 0:
			u.identity = fmt.Sprintf("ct-%05d", i)
		}
		if !u.anonymous {
			u.badEmail = i%29 == 0
			u.badID = i%97 == 1
			if i%7 == 2 {
				u.device = fmt.Sprintf("%08x-0000-4000-8000-%012x", d.rng.Uint32(), i)
			}
			d.updates = append(d.updates, d.profile(token, i, u))
		}
		d.users = append(d.users, u)
		d.live(u)
	}
	return d
}

func (d *data) profile(token string, i int, u *user) update {
	email := fmt.Sprintf("%s@example.org", u.distinctID)
	if u.badEmail {
		email = "not an address"
	}
	set := map[string]any{
		"$first_name": fmt.Sprintf("First%d", i), "$last_name": fmt.Sprintf("Last%d", i), "$email": email,
		"$phone": fmt.Sprintf("+9198%08d", i), "country": u.country, "plan": []string{"free", "pro"}[i%2],
	}
	if u.identity != "" {
		set["$CleverTap_user_id"] = u.identity
	}
	if u.badID {
		set["$CleverTap_user_id"] = "n/a"
	}
	return update{"$token": token, "$distinct_id": u.distinctID, "$ip": "0", "$set": set}
}

// live makes a person's events: what everyone does, all over the 60 days, and
// shopping on either side of the window's edge, an hour at least away from it so
// that the answer does not hang on how long the demo takes.
func (d *data) live(u *user) {
	for range 7 + d.rng.IntN(7) {
		d.add(u, plainEvents[d.rng.IntN(len(plainEvents))], d.ago(1, days*24-1), nil)
	}
	for range d.rng.IntN(7) {
		d.add(u, "Add To Cart", d.ago(1, targetDays*24-1), map[string]any{"price": 100 + d.rng.IntN(900), "currency": "INR"})
		u.carts++
	}
	for range d.rng.IntN(3) {
		d.add(u, "Add To Cart", d.ago(targetDays*24+1, days*24-1), map[string]any{"price": 100 + d.rng.IntN(900), "currency": "INR"})
	}
	if d.rng.IntN(5) == 0 {
		d.add(u, "Purchase", d.ago(1, targetDays*24-1), map[string]any{"amount": 500})
		u.purchases++
	}
	if d.rng.IntN(4) == 0 {
		d.add(u, "Purchase", d.ago(targetDays*24+1, days*24-1), map[string]any{"amount": 500})
	}
}

// ago is a time between from and to hours back.
func (d *data) ago(from, to int) time.Time {
	return d.now.Add(-time.Duration(from)*time.Hour - time.Duration(d.rng.Int64N(int64(to-from)*int64(time.Hour))))
}

// add records an event. People who were anonymous first have their early events
// under the device, and one that links it to them.
func (d *data) add(u *user, name string, at time.Time, props map[string]any) {
	d.n++
	p := map[string]any{"time": at.UnixMilli(), "$insert_id": fmt.Sprintf("demo-%d", d.n), "platform": []string{"Android", "iOS", "Web"}[d.n%3], "app_version": "4.2.0", "session": d.n / 5}
	for k, v := range props {
		p[k] = v
	}
	switch {
	case u.device != "" && d.n%2 == 0:
		p["$device_id"] = u.device
		p["distinct_id"] = "$device:" + u.device
	case u.device != "":
		p["$device_id"], p["$user_id"], p["distinct_id"] = u.device, u.distinctID, u.distinctID
	default:
		p["distinct_id"] = u.distinctID
	}
	d.events = append(d.events, event{name, p})
}

// change makes what happens after the first exports: people who qualify now,
// people who bought, and people whose e-mail address changed.
func (d *data) change(token string) ([]event, []update) {
	d.events, d.updates = nil, nil
	joined, left, changed := 0, 0, 0
	for i, u := range d.users {
		switch {
		case u.anonymous || u.badID:
		case !u.inCohort() && u.purchases == 0 && (u.country == "IN" || u.country == "US") && joined < 40:
			for u.carts < 3 {
				d.add(u, "Add To Cart", d.now.Add(-time.Duration(i+1)*time.Second), map[string]any{"price": 250, "currency": "INR"})
				u.carts++
			}
			joined++
		case u.inCohort() && left < 25:
			d.add(u, "Purchase", d.now.Add(-time.Duration(i+1)*time.Second), map[string]any{"amount": 900})
			u.purchases++
			left++
		case u.inCohort() && !u.badEmail && changed < 15:
			d.updates = append(d.updates, update{"$token": token, "$distinct_id": u.distinctID, "$ip": "0", "$set": map[string]any{"$email": fmt.Sprintf("new-%s@example.org", u.distinctID)}})
			changed++
		}
	}
	return d.events, d.updates
}

// expected is who must be in the segment.
func (d *data) expected() map[string]bool {
	out := map[string]bool{}
	for _, u := range d.users {
		if id := u.delivered(); id != "" {
			out[id] = true
		}
	}
	return out
}
