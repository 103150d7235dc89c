package ice

import "time"

// maxTrips is how many round trips are remembered of an agent: about a minute's of a good path, where checks are 2 s apart.
const maxTrips = 32

// Trip is one round trip: when its answer came, and how long it took.
type Trip struct {
	At   time.Time
	Took time.Duration
}

// trips are the latest round trips. The zero value has none.
type trips struct {
	ring [maxTrips]Trip
	n    int // of all that were noted
}

func (t *trips) note(at time.Time, took time.Duration) {
	t.ring[t.n%maxTrips] = Trip{at, max(took, 0)}
	t.n++
}

// list returns those from since on, the oldest first.
func (t *trips) list(since time.Time) (list []Trip) {
	for i := max(t.n-maxTrips, 0); i < t.n; i++ {
		if trip := t.ring[i%maxTrips]; !trip.At.Before(since) {
			list = append(list, trip)
		}
	}
	return list
}

// tripsTold is how old a round trip may be that Trips tells: of an agent that is asked now and then, those of long ago are another story.
const tripsTold = 5 * time.Minute

// Trips are the latest round trips of the agent, at most 32 and of the last five minutes, the oldest first. As LastSeen has it,
// without the time that a check waited to be sent.
func (a *Agent) Trips() []Trip {
	mux := a.config.Mux
	mux.mu.Lock()
	defer mux.mu.Unlock()
	return a.member.trips.list(time.Now().Add(-tripsTold))
}
